"""``metaflow-gang why`` and ``logs``, on the runs of one flow: gangs that fail, are retried, and succeed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any import of the extension
import pytest
from support.examples import EXAMPLES
from support.flows import FlowRunner, flow_environment
from support.trees import Tree

from metaflow_extensions.gang.cli import run_tasks, why
from metaflow_extensions.gang.cli.logs import Line, Merged
from metaflow_extensions.gang.cli.main import main
from metaflow_extensions.gang.core.metaflow_compat.tasks import place_of_task

COMMAND = str(Path(sys.executable).with_name("metaflow-gang"))
LIMIT = 120.0

FLOW = """
import os, time
from metaflow import FlowSpec, current, retry, step
from scatter import scatter

def work(attempt):
    rank = int(os.environ["RANK"])
    print(f"attempt {attempt}, rank {rank} works", flush=True)
    while not os.path.exists("go"):
        time.sleep(0.05)
    if attempt == 0 and rank == 3:
        raise ValueError("no way")
    time.sleep(0 if attempt else 1000)

def lose():
    if os.environ["RANK"] == "1":
        raise KeyError("lost")
    time.sleep(1000)

class Told(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @retry(times=1, minutes_between_retries=0)
    @scatter(nproc=2)
    @step
    def train(self):
        print(f"the body of node {current.gang.node_index}", flush=True)
        current.scatter.run(work, {"attempt": current.retry_count})
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.split)

    @step
    def split(self):
        self.next(self.alone, num_parallel=1)

    @scatter(nproc=2)
    @step
    def alone(self):
        current.scatter.run(lose)
        self.next(self.last)

    @step
    def last(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Told()
"""


def ask(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command, as a user has it, in the folder of the run."""
    done = subprocess.run(
        [COMMAND, *words], cwd=folder, env=flow_environment(), capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done
    return done


def tasks_asked_by_why(run_id: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """The tasks whose metadata are asked for: step, node, and attempt, -1 for the latest."""
    asked = []

    def noted(task: Any) -> dict[str, str]:
        attempt = -1 if task._attempt is None else task._attempt
        asked.append((task.path_components[2], place_of_task(task.id)[1], attempt))
        return dict(task.metadata_dict)

    gangs = run_tasks.gangs_of(f"Told/{run_id}", None)
    with monkeypatch.context() as patch:
        patch.setattr(run_tasks, "_metadata", noted)
        for gang in gangs:
            why.answer(gang)
    return asked


def in_order(output: str, lines: Sequence[str]) -> bool:
    rest = iter(output.splitlines())
    return all(line in rest for line in lines)


@pytest.mark.slow
def test_why_and_logs_of_a_run(
    flow_run: FlowRunner, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scatter = (EXAMPLES / "custom_launcher" / "scatter.py").read_text()
    run = flow_run(FLOW, files={"scatter.py": scatter})
    run.wait_for("rank 3 works", LIMIT)
    train = f"Told/{run.run_id}/train"
    following = Tree([COMMAND, "logs", train, "--attempt", "0", "--follow"], env=flow_environment(), cwd=run.folder)
    try:
        # It has looked at the run once, in which it has found nothing yet: a local task's log is stored at its end.
        assert ask("logs", train, folder=run.folder).stdout == ""
        (run.folder / "go").touch()
        run.fails(LIMIT)
        assert following.wait(LIMIT) == 0, following.dump()
        followed = following.output
    finally:
        following.close()
    assert "[node 1] [rank 3] ValueError: no way" in followed and "attempt 1" not in followed

    failed = ask("logs", train, "--attempt", "0", folder=run.folder).stdout
    assert sorted(failed.splitlines()) == sorted(line for line in followed.splitlines() if line)
    for line in (
        "[node 0] the body of node 0",
        "[node 1] the body of node 1",
        *(f"[node {rank // 2}] [rank {rank}] attempt 0, rank {rank} works" for rank in range(4)),
    ):
        assert failed.splitlines().count(line) == 1, f"{line!r} comes from two tasks, and is shown once: {failed}"

    def logs(*words: str) -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["logs", *words])
        assert ended.value.code == 0
        return capsys.readouterr()

    latest, _ = logs(train)
    assert in_order(latest, ["[node 1] the body of node 1", "[node 1] [rank 2] attempt 1, rank 2 works"]), latest
    assert logs(train, "--rank", "2")[0] == "[node 1] [rank 2] attempt 1, rank 2 works\n"
    of_node, _ = logs(train, "--node", "1")
    assert "the body of node 1" in of_node and "[node 0]" not in of_node
    assert "KeyError: 'lost'" in logs(f"Told/{run.run_id}/alone", "--rank", "1")[0]

    told = ask("why", "Told", folder=run.folder).stdout
    first, second = told.split("\n\n")
    assert re.match(rf"{train}/\d+, attempt 1: the gang of 2 nodes has succeeded\.\n", first), told
    before = r"  attempt 0 before it: node 1 \(.+\): rank 3 exited with code 1 \(ValueError: no way\)\."
    assert re.search(before, first), told
    assert re.match(rf"Told/{run.run_id}/alone/\d+, attempt 0: the gang of 1 node has failed\.\n", second), told
    assert re.search(r"first failure: node 0 \(.+\): rank 1 exited with code 1 \(KeyError: 'lost'\)\.\n", second), told
    assert re.search(r"  at [-\d]+ [:\d]+ UTC, \d+\.\d s after the task had started\n", second), told
    assert re.search(
        r"before that: all nodes had joined after [\d.]+ s, the body had begun after [\d.]+ s, ranks", second
    ), told
    first_line, *_, last_line = re.findall(r"\n    \| (.*)", second)
    assert (first_line, last_line) == ("Traceback (most recent call last):", "KeyError: 'lost'"), told
    assert re.search(rf"log: metaflow-gang logs Told/{run.run_id}/alone/\d+ --node 0 --rank 1\n", second), told

    # What it tells is all on node 0's tasks, which are asked once for each attempt.
    asked = sorted(tasks_asked_by_why(run.run_id, monkeypatch))
    assert [(step, node) for step, node, _ in asked] == [("alone", 0)] * 2 + [("train", 0)] * 3, asked
    assert [attempt for *_, attempt in asked] == [-1, 0, -1, 0, 1], asked

    node_1 = run.node_tasks("train")[1]
    (data,) = json.loads(ask("why", node_1.pathspec, "--json", folder=run.folder).stdout)
    assert (data["state"], data["nodes"], data["attempt"], data["failure"]) == ("succeeded", 2, 1, None)
    assert data["earlier"][0]["failure"]["rank"] == 3 and data["phases"]["times"]["joined"] > 0

    for words, sentence in (
        (["why", "Told/77"], r"Told has no run '77'\. Runs with local metadata are known in the folder in which"),
        (["why", "Unknown/1"], r"Metaflow's metadata \(local@.*\) has no flow 'Unknown'\."),
        (
            ["logs", f"Told/{run.run_id}/no"],
            rf"Told/{run.run_id} has no step 'no'\. Its steps: start, train, join, split, alone\.",
        ),
        (["logs", f"{train}/999"], rf"{train} has no task '999'\. Its tasks: \d+, \d+_node_1\."),
        (["logs", f"Told/{run.run_id}/start"], rf"Told/{run.run_id}/start has no gang: no task of it belongs to a"),
        (["logs", f"Told/{run.run_id}"], r"There are 2 gangs; name one: Told/"),
        (["logs", train, "--node", "5"], r"has no node 5: its nodes are 0, 1\."),
        (["logs", train, "--rank", "7"], r"has no rank 7: these ranks have lines: 0, 1, 2, 3\."),
        (["logs", train, "--rank", "-1"], r"has no rank -1: ranks are numbered from 0\."),
        (["logs", train, "--attempt", "2"], r"has no attempt 2: the latest is 1\."),
        (["why", "a/b/c/d/e"], r"'a/b/c/d/e' is no path to a run: write Flow/run"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert re.match(f"metaflow-gang: .*{sentence}", said), said


@pytest.mark.parametrize(
    ("task", "control", "node"),
    [
        ("3", "3", 0),
        ("3_node_12", "3", 12),
        ("7-worker-0", "7", 1),
        ("control-1a2b-0", "control-1a2b-0", 0),
        ("worker-1a2b-3", "control-1a2b-0", 4),
    ],
)
def test_the_node_of_a_task_by_its_id(task: str, control: str, node: int) -> None:
    assert place_of_task(task) == (control, node)


def test_a_line_of_two_tasks_is_shown_once_and_as_often_as_it_was_printed() -> None:
    def lines(*texts: str, is_own: bool, second: int) -> list[Line]:
        return [Line(datetime(2026, 1, 1, 0, 0, second + n), 1, text, is_own) for n, text in enumerate(texts)]

    merged = Merged()
    # While a local gang runs only node 0's task has the lines of node 1, ...
    first = merged.new(lines("a", "b", "a", is_own=False, second=0))
    assert [line.text for line in first] == ["a", "b", "a"]
    # ... and at its end that of node 1 has them, too, and one more that node 0's has not got.
    second = merged.new(lines("a", "b", "a", "a", "c", is_own=True, second=10))
    assert [line.text for line in second] == ["a", "c"]


def test_the_command_has_a_version_and_works_as_a_module(tmp_path: Path) -> None:
    said = ask("--version", folder=tmp_path).stdout
    assert re.fullmatch(r"metaflow-gang \d+\.\d+\.\S+\n", said)
    module = [sys.executable, "-m", "metaflow_extensions.gang.cli", "--version"]
    done = subprocess.run(module, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)
    assert (done.stdout, done.returncode) == (said, 0)

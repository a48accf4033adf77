"""Traces of torch's profiler that real ranks on two nodes leave: a gang that fails, and its retry that succeeds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.flows import FlowRun, FlowRunner, cards, data_of, flow_environment
from support.paths import ROOT
from support.requirements import require_packages

pytestmark = pytest.mark.slow

require_packages("torch")

LIMIT_S = 300.0
COMMAND = str(Path(sys.executable).with_name("metaflow-gang"))

BEFORE = """
import os, signal, sys
import torch, torch.distributed as dist

dist.init_process_group("gloo")
batches = range(4)

def train(batch):
    dist.all_reduce(torch.ones(100, 100) @ torch.ones(100, 100))

"""

AFTER = """
dist.barrier()  # torch has written the trace
if sys.argv[1:] == ["--fails"] and dist.get_rank() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
dist.barrier()
dist.destroy_process_group()
"""

FLOW = """
from metaflow import FlowSpec, current, retry, step, torchrun

class Profiled(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @retry(times=1, minutes_between_retries=0)
    @torchrun
    @step
    def train(self):
        self.folder = current.gang.traces
        arguments = ["--fails"] if current.retry_count == 0 else []
        current.torch.run(entrypoint="ranks.py", entrypoint_args=arguments)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Profiled()
"""


def of_the_page() -> str:
    """The ranks' part as docs/card.md shows it."""
    page = (ROOT / "docs" / "card.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"```python\n([^`]*tensorboard_trace_handler[^`]*)```", page)
    return str(found)


def traces(run: FlowRun, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "traces", *words],
        cwd=run.folder,
        env=flow_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def test_traces_of_a_failed_gang_and_of_its_retry_are_stored_listed_and_fetched(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, files={"ranks.py": BEFORE + of_the_page() + AFTER}).ok(LIMIT_S)
    step = f"Profiled/{run.run_id}/train"
    pages = {data["attempt"]: data for data in map(data_of, cards(flow_run.folder))}
    assert {attempt: data["state"] for attempt, data in pages.items()} == {0: "failed", 1: "succeeded"}
    assert "rank 1" in pages[0]["failure"]["title"] and "SIGKILL" in pages[0]["failure"]["title"]
    for data in pages.values():
        shown = data["traces"]
        assert [(file["node"], file["rank"]) for file in shown["files"]] == [(0, 0), (1, 1)], shown
        assert (shown["in_all"], shown["left_out"]) == (2, [])
        for file in shown["files"]:
            content = Path(file["where"]).read_bytes()
            assert file["bytes"] == len(content)
            assert json.loads(content)["distributedInfo"]["rank"] == file["rank"]
    assert run.output.count("[gang] Stored 1 trace of torch's profiler in /") == 4, run.output

    listed = traces(run, step)
    assert listed.returncode == 0, listed.stderr
    places = [file["where"] for file in pages[1]["traces"]["files"]]
    for rank, (line, place) in enumerate(zip(listed.stdout.splitlines(), places, strict=True)):
        assert re.fullmatch(rf"\[node {rank}\] \[rank {rank}\] [\d.]+ MiB {re.escape(place)}", line), listed.stdout
    command = ["--attempt", "0", "--to", "profiles"]
    fetched = traces(run, f"{step}/{run.node_tasks('train')[1].id}", *command)
    assert fetched.returncode == 0, fetched.stderr
    for file in pages[0]["traces"]["files"]:
        source = Path(file["where"])
        copy = run.folder / "profiles" / f"node-{file['node']}" / source.name
        assert copy.read_bytes() == source.read_bytes()
        assert f"MiB {copy.relative_to(run.folder)}\n" in fetched.stdout
    Path(places[0]).unlink()
    gone = traces(run, step, "--to", "more")
    assert gone.returncode == 2 and "metaflow-gang: node 0 [rank 0]: There is no object at" in gone.stderr
    assert "[node 1]" in gone.stdout

    for node, task in run.node_tasks("train").items():
        found: dict[str, Any] = json.loads(task.metadata_dict["gang-traces"])
        assert found["where"] == str(Path(places[node]).parent) and found["files"][0]["rank"] == node
        assert not Path(task.data.folder).exists()

"""A node is told to end: what the bodies registered is called once, every node tells a preemption, a retry goes on."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import metaflow  # noqa: F401 - before any import of the extension
import pytest
from support.faults import kill_process
from support.flows import FlowRun, FlowRunner
from support.remote import RemoteTask, remote_gang
from support.requirements import require_packages

from metaflow_extensions.gang.core.exceptions import BadAttribute
from metaflow_extensions.gang.core.gang.gang import Gang
from metaflow_extensions.gang.core.gang.node import Node
from metaflow_extensions.gang.core.step.termination import SigtermHandler

START_S = 90.0
"""For a flow to be up, on a machine that is busy with other tests."""

END_S = 30.0
"""For a run to end after it was struck: what it is meant to take is 5 s, on a machine that is not busy."""

TOLD = r"node %d(?: \([^)]*\))?: was told to end \(SIGTERM\): a preemption, or somebody ended its task"

FLOW = """
import multiprocessing, os, signal, sys, time
from metaflow import FlowSpec, current, gang, retry, step

HOW = os.environ.get("HOW", "body")
if "NOTICE" in os.environ:
    current._update_env({"spot_termination_notice": os.environ["NOTICE"]})  # as @batch and @kubernetes do

# What it has to write down takes it longer than the half second that a process has for its end otherwise.
RANK = '''
import signal, sys, time
def end(number, frame):
    time.sleep(1.5)
    with open(sys.argv[1], "w") as file:
        file.write("rank")
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
print("ready", sys.argv[2], flush=True)
while True:
    time.sleep(0.05)
'''

class Preempted(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ.get("NODES", "3")))

    @retry(times=1, minutes_between_retries=0)
    @gang(all_nodes_started_timeout=60)
    @step
    def work(self):
        me = current.gang.node_index

        def save():
            assert HOW != "run" or os.path.exists(f"rank-{me}"), "the ranks have ended before"
            if HOW == "slow" and me == 2:
                time.sleep(4)
            if HOW == "hang" and me == 2:
                time.sleep(1000)
            with open(f"saved-{me}", "a") as file:
                print(f"attempt {current.retry_count}", file=file)

        self.resumed = os.path.exists(f"saved-{me}")
        if HOW != "none":
            current.gang.on_preemption(save, seconds=2.0 if HOW == "hang" else 20.0)
        current.gang.barrier()
        if current.retry_count == 0:
            if HOW == "own":
                heard = []
                signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
            if HOW == "fork":
                child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
                child.start()
                child.terminate()
                child.join()
                print(f"child ended with {child.exitcode};", flush=True)
            if HOW == "all":
                is_first = str(me) == os.environ["FIRST"]
                rank = "os.kill(os.getpid(), 15)" if is_first else "time.sleep(1000)"
                try:
                    current.gang.run([sys.executable, "-c", f"import os, time; {rank}"])
                finally:
                    if is_first:
                        os.kill(os.getpid(), signal.SIGTERM)
            if HOW == "run":
                current.gang.run([sys.executable, "-c", RANK, f"rank-{me}", str(me)])
            print(f"ready {me} task={os.getpid()};", flush=True)
            if HOW == "own":
                while not heard and me == 1:
                    time.sleep(0.02)
                print(f"heard by its own handler on {me}", flush=True)
            elif HOW == "wait":
                current.gang.barrier() if me else time.sleep(1000)
            elif HOW != "fork":
                time.sleep(1000)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.resumed = [each.resumed for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Preempted()
"""


def tasks_of(run: FlowRun, text: str = r"ready (\d)\b") -> dict[int, int]:
    """Wait until every body runs; pids of the tasks by node index."""
    run.wait_for(re.compile(text), START_S, count=3)
    return run.tasks("work")


def saved(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("saved-*"))}


ONCE = {f"saved-{node}": "attempt 0\n" for node in range(3)}


@pytest.mark.slow
@pytest.mark.parametrize(("how", "node"), [("body", 1), ("body", 0), ("run", 1), ("wait", 1), ("wait", 0)])
def test_all_nodes_save_once_and_the_retry_goes_on(flow_run: FlowRunner, how: str, node: int) -> None:
    run = flow_run(FLOW, env={"HOW": how})
    pids = tasks_of(run)
    started = time.monotonic()
    kill_process(pids[node], signal.SIGTERM)
    run.wait_for("on_preemption: called 1", START_S, count=3)
    print(f"{how}, SIGTERM to node {node}: all had saved after {time.monotonic() - started:.1f} s")
    run.ok(START_S)
    assert saved(run.folder) == ONCE
    assert run.artifact("join", "resumed") == [True] * 3
    assert len(re.findall(TOLD % node, run.output)) >= 3, run.dump()
    for other in {1, 2}:
        assert re.search(rf"\[node {other}\].*" + TOLD % node, run.output), run.dump()
    assert "killed by" not in run.output


@pytest.mark.slow
@pytest.mark.parametrize("node", [1, 0])
def test_all_nodes_save_where_a_rank_has_ended_before_its_task_is_told_to(flow_run: FlowRunner, node: int) -> None:
    """Slurm sends SIGTERM to all processes of a job; their order is not known."""
    run = flow_run(FLOW, env={"HOW": "all", "FIRST": str(node)}).ok(START_S)
    assert saved(run.folder) == ONCE
    assert len(re.findall(TOLD % node, run.output)) >= 3 and "was killed by" not in run.output, run.dump()


@pytest.mark.slow
def test_without_anything_to_save_it_ends_at_once(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, env={"HOW": "none"})
    pids = tasks_of(run)
    kill_process(pids[1], signal.SIGTERM)
    run.ok(START_S)
    assert "on_preemption" not in run.output and len(re.findall(TOLD % 1, run.output)) >= 3
    assert run.artifact("join", "resumed") == [False] * 3


@pytest.mark.slow
def test_a_handler_that_the_body_installs_is_left_alone(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, env={"HOW": "own"})
    pids = tasks_of(run)
    kill_process(pids[1], signal.SIGTERM)
    run.ok(START_S)
    assert "heard by its own handler on 1" in run.output and saved(run.folder) == {}


@pytest.mark.slow
def test_a_process_that_the_body_forks_is_ended_by_sigterm_alone(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, env={"HOW": "fork"}).ok(START_S)
    assert run.output.count(f"child ended with -{int(signal.SIGTERM)};") == 3 and saved(run.folder) == {}


@pytest.mark.slow
def test_a_save_that_does_not_end_is_shown_and_killed(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, env={"HOW": "hang"})
    pids = tasks_of(run)
    kill_process(pids[1], signal.SIGTERM)
    run.ok(START_S)
    assert re.search(r'File ".*flow.py", line \d+ in save', run.output), run.dump()
    assert sorted(saved(run.folder)) == ["saved-0", "saved-1"]
    assert len(re.findall(TOLD % 1, run.output)) >= 2 and "interrupted for a preemption" in run.output, run.dump()


@pytest.mark.slow
def test_torchs_ranks_hear_it_and_have_the_time(flow_run: FlowRunner) -> None:
    require_packages("torch")
    source = FLOW.replace("import FlowSpec, current, gang,", "import FlowSpec, current, torchrun as gang,").replace(
        'current.gang.run([sys.executable, "-c", RANK, f"rank-{me}", str(me)])',
        'current.torch.run(entrypoint="rank.py", entrypoint_args=[f"rank-{me}", str(me)])',
    )
    rank = re.search(r"RANK = '''(.*?)'''", FLOW, re.DOTALL)
    assert rank is not None and "current.torch.run(" in source
    run = flow_run(source, files={"rank.py": rank[1]}, env={"HOW": "run"})
    pids = tasks_of(run)
    kill_process(pids[1], signal.SIGTERM)
    run.ok(START_S)
    assert saved(run.folder) == ONCE and len(re.findall(TOLD % 1, run.output)) >= 3


# ---------------------------------------------------------------- on hosts


def all_fail(tasks: list[RemoteTask], timeout: float = END_S) -> list[str]:
    return [task.fails(timeout) for task in tasks]


@pytest.mark.slow
@pytest.mark.parametrize("node", [0, 1])
def test_hosts_wait_for_the_one_that_saves_longest_and_a_retry_goes_on(tmp_path: Path, node: int) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all(HOW="slow")
        for task in tasks:
            task.wait_for("ready ")
        started = time.monotonic()
        tasks[node].kill(signal.SIGTERM)
        control = tasks[0].fails(END_S)
        # Its end is the job's: what the others had not saved by then would be lost.
        assert saved(tmp_path) == ONCE
        print(
            f"SIGTERM to node {node}: control ended after {time.monotonic() - started:.1f} s, 4 of which node 2 saved"
        )
        for output in (control, *all_fail(tasks[1:])):
            assert re.search(TOLD % node, output), output
        for task in gang.start_all(attempt=1, HOW="slow"):
            task.ok()
    assert saved(tmp_path) == ONCE


@pytest.mark.slow
def test_a_spot_notice_is_a_preemption(tmp_path: Path) -> None:
    notice = tmp_path / "notice-1"
    (tmp_path / "notice-0").write_text("2001-01-01T00:00:00Z")
    old = time.time() - 3600
    with remote_gang(tmp_path, FLOW, 2) as gang:
        os.utime(tmp_path / "notice-0", (old, old))  # another task's, of which this machine is still full
        tasks = [gang.start(node, HOW="body", NOTICE=str(tmp_path / f"notice-{node}")) for node in range(2)]
        for task in tasks:
            task.wait_for("ready ")
        notice.write_text("2026-01-01T00:02:00Z")
        for output in all_fail(tasks):
            told = r"node 1 \(.*\): is to lose its machine at 2026-01-01T00:02:00Z: a preemption"
            assert re.search(told, output), output
    assert sorted(saved(tmp_path)) == ["saved-0", "saved-1"]


@pytest.mark.slow
@pytest.mark.parametrize("node", [0, 1])
def test_before_the_gang_has_formed(tmp_path: Path, node: int) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = [gang.start(index) for index in (0, 1)]
        tasks[0].wait_for("2 of 3 nodes have joined")
        tasks[node].kill(signal.SIGTERM)
        for output in all_fail(tasks):
            assert re.search(TOLD % node, output), output
    assert saved(tmp_path) == {}


@pytest.mark.slow
def test_a_node_that_looks_for_node_0(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 2) as gang:
        task = gang.start(1)
        deadline = time.monotonic() + START_S
        while not list(gang.folder.glob("tmp/*/metaflow-gang-*/gangs/*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        task.kill(signal.SIGTERM)
        assert re.search(TOLD % 1, task.fails(END_S)), task.output


# ---------------------------------------------------------------- pieces


def test_what_one_save_raises_does_not_keep_the_next_from_it(capsys: pytest.CaptureFixture[str]) -> None:
    called = []

    def breaks() -> None:
        raise SystemExit("no room left on the disk")

    preemption = SigtermHandler()
    preemption.save_functions += [breaks, lambda: called.append(1)]
    preemption.save()
    said = capsys.readouterr().err
    assert called == [1] and "breaks failed" in said and "no room left on the disk" in said and "called 2" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((None,), "takes a function"),
        (("save.pt",), "takes a function"),
        ((print, 0), "more than 0"),
        ((print, True), "more than 0"),
        ((print, float("inf")), "more than 0"),
        ((print, "30"), "more than 0"),
    ],
)
def test_mistakes_are_told(arguments: tuple[object, ...], said: str) -> None:
    gang = Gang(0, (Node(0, "127.0.0.1", "here", 1, 0),), "", None)  # type: ignore[arg-type]
    with pytest.raises(BadAttribute, match=said):
        gang.on_preemption(*arguments)  # type: ignore[arg-type]

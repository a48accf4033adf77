"""torchrun on one machine, without a gang: what runs, what is told, and that nothing outlives whoever wanted it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.faults import kill_process
from support.flows import FlowRunner, flow_environment
from support.requirements import require_packages
from support.trees import Tree

from metaflow_extensions.gang.core.exceptions import BadAttribute, GuardDied, ProcessFailed
from metaflow_extensions.gang.core.gang.launch_plan import LaunchPlan, Process
from metaflow_extensions.gang.core.guard.processes.process_table import marked
from metaflow_extensions.gang.core.guard_client.single_node import single_node_guard
from metaflow_extensions.gang.launchers.torchrun.exceptions import TorchrunException
from metaflow_extensions.gang.launchers.torchrun.single_node import TorchrunSingleNodeMultiGPU

require_packages("torch")

DEADLINE_S = 120

END_S = 5.0
"""For everything to be gone after an event."""

ADDS = """
import os, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
sys.stdout.write(f"total {total.item()} {sys.argv[1:]}\\n")
if "--fail" in sys.argv and dist.get_rank() == 1:
    raise ValueError("loss is nan")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_at_once(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    script = tmp_path / "adds.py"
    script.write_text(ADDS)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            TorchrunSingleNodeMultiGPU().run(
                entrypoint=str(script), entrypoint_args={"name": "é $HOME"}, nproc_per_node=2
            )
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert errors == []
    assert capfdbinary.readouterr().out.decode().count("total 3.0 ['--name', 'é $HOME']") == 4


@pytest.mark.slow
def test_a_failed_rank_is_told(tmp_path: Path) -> None:
    script = tmp_path / "adds.py"
    script.write_text(ADDS)
    with pytest.raises(TorchrunException) as caught:
        TorchrunSingleNodeMultiGPU().run({"max-restarts": 0}, str(script), ["--fail"], 2)
    message = str(caught.value)
    assert "on this machine, running" in message
    assert "rank 1 on this machine" in message and "ValueError: loss is nan" in message


FUNCTIONS = """
import os
def add(a, b=0):
    return [int(os.environ["RANK"]), a + b]
def fail(rank):
    if int(os.environ["RANK"]) == rank:
        raise KeyError("no such sample")
    import time
    time.sleep(60)
"""


@pytest.mark.slow
def test_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gang_test_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    import gang_test_functions  # type: ignore[import-not-found]

    run = TorchrunSingleNodeMultiGPU().run
    assert run(entrypoint=gang_test_functions.add, entrypoint_args={"a": 2, "b": 3}, nproc_per_node=2) == [
        [0, 5],
        [1, 5],
    ]
    with pytest.raises(KeyError, match="no such sample") as caught:
        run(entrypoint=gang_test_functions.fail, entrypoint_args=[1], nproc_per_node=2)
    assert "In rank 1 on this machine" in str(caught.value.__cause__)
    with pytest.raises(BadAttribute, match="entrypoint_args do not fit"):
        run(entrypoint=gang_test_functions.fail)


# -- under a guard of its own ------------------------------------------------------------------------------------------


def python(program: str, **variables: str) -> Process:
    return Process((sys.executable, "-c", program), {**os.environ, **variables})


def spreads(ready: Path, then: str) -> str:
    """A program that is deaf to SIGTERM, with a child in a session of its own that is so too, as a rank that hangs."""
    inner = f"import signal, time; signal.signal(15, 1); open({str(ready)!r}, 'w').write('x'); time.sleep(600)"
    return (
        "import os, signal, subprocess, sys, time; signal.signal(15, 1);"
        f"subprocess.Popen([sys.executable, '-c', {inner!r}], start_new_session=True); {then}"
    )


@pytest.mark.slow
def test_what_was_started_is_gone_when_the_step_is_interrupted(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    started: list[set[int]] = []

    def interrupt() -> None:
        with open(ready) as file:
            file.read(1)
        started.append(marked("GANG_TEST", str(tmp_path)))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt), single_node_guard() as guard:
        guard.launch(LaunchPlan((python(spreads(ready, "time.sleep(600)"), GANG_TEST=str(tmp_path)),), grace=0.2))
    thread.join(DEADLINE_S)
    assert [len(pids) for pids in started] == [2]
    assert marked("GANG_TEST", str(tmp_path)) == set()
    assert not os.path.exists(guard.folder)


def test_what_was_started_is_gone_when_the_guard_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    then = f"open({str(ready)!r}).read(1); os.kill(os.getppid(), signal.SIGKILL); time.sleep(600)"
    with pytest.raises(GuardDied, match=r"\(process \d+\) has died") as caught, single_node_guard() as guard:
        guard.launch(LaunchPlan((python(spreads(ready, then), GANG_TEST=str(tmp_path)),)))
    assert caught.value.headline == "The guard has died"
    assert marked("GANG_TEST", str(tmp_path)) == set()
    assert not os.path.exists(guard.folder)


def test_the_guard_s_debug_log_is_kept_where_the_call_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("METAFLOW_GANG_DEBUG", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with single_node_guard() as guard:
        guard.launch(LaunchPlan((python("pass"),)))
    assert not list(tmp_path.rglob("*.log")) and not capfd.readouterr().err
    with pytest.raises(ProcessFailed), single_node_guard() as guard:
        guard.launch(LaunchPlan((python("raise SystemExit(3)", PLANTED="planted-secret"),)))
    (log,) = tmp_path.rglob("*.log")
    said = f"[gang] The debug log of the guard is kept in {log} (METAFLOW_GANG_DEBUG).\n"
    assert said in capfd.readouterr().err
    assert not os.path.exists(guard.folder)
    text = log.read_text()
    for what in (
        r"request \d+: launch",
        r" started, pid \d+: \S*python",
        r"pid \d+ ended, exit code 3",
        r"reply \d+ \(laun",
    ):
        assert re.search(rf"(?m)^\d+\.\d{{6}} .*{what}", text), text
    assert "planted" not in text


def test_one_that_fails_ends_the_others_and_the_next_launch_runs(tmp_path: Path) -> None:
    both = (python("import time; time.sleep(600)", GANG_TEST=str(tmp_path)), python("raise SystemExit(3)"))
    with single_node_guard() as guard:
        with pytest.raises(ProcessFailed, match="command exited with code 3"):
            guard.launch(LaunchPlan(both))
        assert marked("GANG_TEST", str(tmp_path)) == set()
        guard.launch(LaunchPlan((python("pass"),)))


FORKS = """
import os, sys
import metaflow
from metaflow_extensions.gang.core.guard_client.single_node import single_node_guard
from metaflow_extensions.gang.core.gang.launch_plan import LaunchPlan, Process

read, write = os.pipe()
with single_node_guard() as guard:
    # It has all our descriptors, the guard's among them.
    if not os.fork():
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    guard.launch(LaunchPlan((Process(("true",), dict(os.environ)),)))
print("gone", os.path.exists(guard.folder), flush=True)
"""


def test_a_process_that_was_forked_meanwhile_holds_up_nothing(tmp_path: Path) -> None:
    script = tmp_path / "forks.py"
    script.write_text(FORKS)
    done = subprocess.run(
        [sys.executable, str(script)], env=flow_environment(), stdout=subprocess.PIPE, text=True, timeout=DEADLINE_S
    )
    assert (done.returncode, done.stdout) == (0, "gone False\n")


def test_output_passes_whole_and_in_order(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    program = (
        "import os\n"
        "for i in range(20000): os.write(2, b'%06d ' % i + b'x' * 92 + b'\\n')\n"
        "os.write(1, b'\\xc3'); os.write(1, b'\\xa9' + b'y' * 100_000)\n"
    )
    with single_node_guard() as guard:
        guard.launch(LaunchPlan((python(program),)))
    captured = capfdbinary.readouterr()
    assert captured.err == b"".join(b"%06d " % i + b"x" * 92 + b"\n" for i in range(20000))
    assert captured.out == "é".encode() + b"y" * 100_000


# -- in scripts and steps ----------------------------------------------------------------------------------------------

HANGS = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
sys.stdout.write(f"ready {os.environ['RANK']}\\n")
sys.stdout.flush()
time.sleep(600)
"""

READY = re.compile(r"ready \d\n")

SCRIPT = """
import sys
from metaflow import TorchrunSingleNodeMultiGPU
print("before")
for entrypoint in sys.argv[1:]:
    TorchrunSingleNodeMultiGPU().run(entrypoint=entrypoint, nproc_per_node=2)
print("after")
"""


def test_a_killed_script_leaves_no_rank(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    (tmp_path / "script.py").write_text(SCRIPT)
    with Tree([sys.executable, "script.py", "hangs.py"], flow_environment(), tmp_path) as tree:
        tree.wait_for(READY, DEADLINE_S, count=2)
        # A walk through a process table that changes may pass one over.
        deadline = time.monotonic() + END_S
        while len(tree.below()) < 7 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(tree.below()) >= 7, "the script, its guard, the agent, two ranks and what they started"
        kill_process(tree.pid)
        assert tree.wait(DEADLINE_S) == -signal.SIGKILL
        assert tree.left(END_S) == []


@pytest.mark.slow
def test_several_runs_in_a_script_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text("import os, sys; sys.stdout.write(f\"rank {os.environ['RANK']}\\n\")")
    (tmp_path / "script.py").write_text(SCRIPT)
    with Tree([sys.executable, "script.py", "rank.py", "rank.py"], flow_environment(), tmp_path) as tree:
        assert tree.wait(DEADLINE_S) == 0, tree.dump()
        lines = tree.stdout.splitlines()
        assert lines[0] == "before" and lines[-1] == "after"
        assert sorted(lines[1:3]) == sorted(lines[3:5]) == ["rank 0", "rank 1"]
        assert tree.left(END_S) == []


FLOW = """
import os
from metaflow import FlowSpec, Parameter, TorchrunSingleNodeMultiGPU, step

def square(n):
    return n * n + int(os.environ["RANK"])

class OneMachine(FlowSpec):
    how = Parameter("how")

    @step
    def start(self):
        run = TorchrunSingleNodeMultiGPU().run
        if self.how == "hangs":
            print(f"task={os.getpid()};", flush=True)
            run(entrypoint="hangs.py", nproc_per_node=2)
        self.returned = [run(entrypoint=square, entrypoint_args=[n], nproc_per_node=2) for n in (2, 3)]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    OneMachine()
"""


@pytest.mark.slow
def test_several_runs_in_a_plain_step(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "well").ok(DEADLINE_S)
    assert run.artifact("start", "returned") == [[4, 5], [9, 10]]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_plain_step_that_is_ended_leaves_no_rank(flow_run: FlowRunner, number: int) -> None:
    run = flow_run(FLOW, "--how", "hangs", files={"hangs.py": HANGS})
    run.wait_for(READY, DEADLINE_S, count=2)
    found = re.search(r"task=(\d+);", run.stdout)
    assert found is not None
    if number == signal.SIGKILL:
        kill_process(int(found[1]))
    else:
        run.signal(signal.SIGINT)
    run.fails(DEADLINE_S)
    assert run.left(END_S) == []

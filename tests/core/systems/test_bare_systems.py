"""A gang where signals are blocked, and on systems that lack pidfd_open, /proc, subreapers and death signals."""

from __future__ import annotations

import re
import sys

import pytest
from support.flows import FlowRun, FlowRunner
from support.paths import TESTS
from support.requirements import require_root

pytestmark = pytest.mark.slow

END_S = 90.0
"""For a flow, on a machine that is busy with other tests."""

MASKED = TESTS / "support" / "machine" / "masked.py"

FLOW = """
import os, resource, signal, sys, time

if "BLOCKED" in os.environ:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))

from metaflow import FlowSpec, Parameter, current, gang, step

# One write, which no line of the other node comes into: without a buffer print() writes each word by itself.
RANK = "import os, resource, signal; files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]; "
RANK += "blocked = signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()); "
RANK += "os.write(1, f'files {files} blocked {blocked}\\\\n'.encode())"

class Bare(FlowSpec):
    how = Parameter("how", default="")

    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang
    @step
    def work(self):
        node = current.gang.node_index
        current.gang.run([sys.executable, "-c", RANK])
        assert current.gang.all_gather(node) == [0, 1]
        if self.how == f"raises on {node}":
            raise ValueError("deliberate")
        if self.how == f"killed on {node}":
            while not os.path.exists(f"rank-{1 - node}"):
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how.startswith("killed"):
            current.gang.run(["sh", "-c", f"sleep 1000 & touch rank-{node}; sleep 1000"])
        elif self.how:
            time.sleep(1000)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Bare()
"""


def masked(what: str) -> tuple[str, ...]:
    return (sys.executable, str(MASKED), what, sys.executable)


def has_what_the_task_has(run: FlowRun, blocked: bool) -> None:
    """What a rank gets is what the task had, whatever the guard has changed for itself."""
    assert len(re.findall(rf"files 500 blocked {blocked}", run.output)) == 2, run.dump()


def test_signals_that_are_blocked_hold_nothing_up(flow_run: FlowRunner) -> None:
    env = {"BLOCKED": "1"}
    well, failing = flow_run(FLOW, env=env), flow_run(FLOW, "--how", "raises on 1", env=env)
    well.ok(END_S)
    has_what_the_task_has(well, blocked=True)
    failing.fails(END_S)
    assert re.search(r"node 1 \(.*\): the step's body raised ValueError: deliberate", failing.output)
    assert "did not end within" not in failing.output, "node 0's body did not hear the interrupt"


def test_without_pidfd_open_deaths_are_seen_all_the_same(flow_run: FlowRunner) -> None:
    well, killed = (flow_run(FLOW, "--how", how, python=masked("pidfd")) for how in ("", "killed on 0"))
    well.ok(END_S)
    has_what_the_task_has(well, blocked=False)
    killed.fails(END_S)
    assert re.search(r"node 0 \(.*\): the node's task (was killed by SIGKILL|died in the middle)", killed.output)


@pytest.mark.parametrize("how", ["", "killed on 1"])
def test_without_proc_and_prctl_a_gang_works_and_ends_as_a_whole(flow_run: FlowRunner, how: str) -> None:
    require_root()
    run = flow_run(FLOW, "--how", how, python=masked("all"))
    if how:
        run.fails(END_S)
        assert re.search(r"node 1 \(.*\): the node's task was killed by SIGKILL", run.output), run.dump()
    else:
        run.ok(END_S)
        has_what_the_task_has(run, blocked=False)
    assert run.output.count("[gang] This system has no /proc.") == 1

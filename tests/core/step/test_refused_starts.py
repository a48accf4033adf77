"""Tasks that must not form a gang: one whose run has ended, and one that the body of the same task has started."""

from __future__ import annotations

import re
import signal
import time

import pytest
from support.flows import FlowRunner

RUN_S = 120.0
"""For a flow to end, on a machine that is busy with other tests."""

LATE = """
import os, time
from metaflow import FlowSpec, current, gang, step

if os.environ.get("METAFLOW_GANG_CONTROL_OF"):
    print("control loads", flush=True)
    with open("loading", "w"):
        pass
    deadline = time.monotonic() + 60
    while not os.path.exists("go-on") and time.monotonic() < deadline:
        time.sleep(0.02)

class Late(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang
    @step
    def work(self):
        with open("formed", "w"):
            pass
        current.gang.run(["sleep", "1000"])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Late()
"""


def test_a_task_whose_run_was_killed_while_it_started_forms_no_gang(flow_run: FlowRunner) -> None:
    run = flow_run(LATE)
    deadline = time.monotonic() + RUN_S
    while not (run.folder / "loading").exists():
        assert time.monotonic() < deadline, run.dump()
        time.sleep(0.02)
    run.signal(signal.SIGKILL)
    assert run.wait(RUN_S) == -signal.SIGKILL
    (run.folder / "go-on").touch()
    assert not run.left(RUN_S), run.dump()
    assert not (run.folder / "formed").exists()


AGAIN = """
import os, subprocess, sys
from metaflow import FlowSpec, current, gang, step

class Again(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @gang
    @step
    def train(self):
        # As Lightning's launcher for a Trainer with several devices does, and then it waits for its ranks to meet.
        if current.gang.node_index == 1:
            rank = subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "LOCAL_RANK": "1"})
        current.gang.run(["sleep", "1000"])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Again()
"""


@pytest.mark.slow
def test_a_step_that_starts_its_own_command_again_is_told_how_ranks_are_started(flow_run: FlowRunner) -> None:
    run = flow_run(AGAIN)
    output = run.fails(RUN_S)
    told = "the step's body started the step's own command again, as Lightning's Trainer(devices=2) does"
    for node in (0, 1):
        log = run.node_log("train", node, "stderr")
        assert re.search(r"The first failure was on node 1 \(.*\): " + re.escape(told), log), run.dump()
        assert "current.torch.run(entrypoint=...)" in log
    assert "did not join" not in output and "SIGTERM" not in output, run.dump()

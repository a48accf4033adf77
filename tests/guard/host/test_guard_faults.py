"""A fault of a guard itself is told as that, on every node, and the gang ends with nothing left of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.flows import FlowRun

END_S = 60.0

FLOW = """
import os, time
from metaflow import FlowSpec, current, gang, step

class Faulty(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang
    @step
    def work(self):
        current.gang.barrier()
        if current.gang.node_index == int(os.environ["WHERE"]):
            # What no version of ours sends: the guard has no such request.
            current.gang._link.request("no-such-request")
        time.sleep(1000)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Faulty()
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", [0, 1])
def test_a_fault_of_a_guard_is_told_by_all_with_its_traceback(where: int, tmp_path: Path) -> None:
    file = tmp_path / "flow.py"
    file.write_text(FLOW)
    with FlowRun(file, folder=tmp_path, env={"WHERE": str(where)}) as run:
        output = run.fails(END_S)
    told = f"The first failure was on node {where} "
    lines = [line for line in output.splitlines() if told in line and "its guard failed: KeyError: " in line]
    assert any("[node 1] " in line for line in lines) and any("[node 1] " not in line for line in lines), output
    assert "no-such-request" in output and "This is a bug of metaflow-gang" in output
    assert "out of memory" not in output


PROGRAM = """
import os, sys
import metaflow
from metaflow_extensions.gang.core.guard_client.single_node import single_node_guard
from metaflow_extensions.gang.core.exceptions import GuardDied
try:
    with single_node_guard() as guard:
        guard._link._send(b"\\0\\0\\0\\6\\0\\0\\0\\2{}")  # a request without a number
        guard._link.request("launch", plan={})
except GuardDied as error:
    print(error)
"""


def test_a_guard_without_a_gang_that_fails_is_told_by_who_needed_it(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=END_S, cwd=tmp_path)
    assert "It failed by a fault of its own" in done.stdout and "out of memory" not in done.stdout, done.stderr
    assert "its guard failed: KeyError: 'id'" in done.stderr and "Traceback" in done.stderr


IN_A_THREAD = """
import threading
import metaflow
from metaflow_extensions.gang.core.guard import fault
from metaflow_extensions.gang.core.guard.loop.event_loop import Loop

loop = Loop()

def told(text, trace):
    print(text)
    print(trace)
    loop.stop()

def serves_a_connection():
    {}["what it needs"]

loop.call_later(0, threading.Thread(target=serves_a_connection).start)
print(fault.serve(loop, told, lambda: None))
"""


def test_a_fault_in_another_thread_of_the_guard_is_told_in_the_same_way() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_THREAD], capture_output=True, text=True, timeout=END_S)
    assert done.stdout.startswith("its guard failed: KeyError: 'what it needs'\nTraceback"), done.stdout + done.stderr
    assert "in serves_a_connection" in done.stdout and "This is a bug of metaflow-gang" in done.stdout
    assert done.stdout.endswith("\n70\n") and not done.stderr

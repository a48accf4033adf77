"""A node whose body ends while the others go on: told as what it is, whichever node it is; nobody waits for ever."""

from __future__ import annotations

import re

import pytest
from support.flows import FlowRunner
from support.requirements import require_packages

END_S = 90.0
"""For a run that begins and fails, on a machine that is busy with other tests."""

FLOW = """
import os
from metaflow import FlowSpec, Parameter, current, {launcher}, step

class Ends(FlowSpec):
    how = Parameter("how", default="")

    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @{launcher}
    @step
    def work(self):
        is_control = current.gang.is_control
        if self.how == "node 0 ends early":
            if not is_control:
                current.gang.barrier()
        elif self.how == "node 0 runs no ranks":
            if not is_control:
                current.torch.run(entrypoint="ranks.py")
        elif not is_control:
            os._exit(3)
        else:
            current.gang.barrier()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Ends()
"""


def test_node_0_s_body_ends_while_another_waits_in_a_collective(flow_run: FlowRunner) -> None:
    """Node 0 itself waits for the others then, so nobody would ever leave."""
    run = flow_run(FLOW.format(launcher="gang"), "--how", "node 0 ends early")
    run.fails(END_S)
    for node in (0, 1):
        told = run.node_log("work", node, "stderr")
        assert re.search(r"node 0 \(.*\): finished its step while node 1 waits for it in barrier\(\)", told), told


@pytest.mark.big
def test_node_0_s_body_ends_without_the_ranks_that_another_starts(flow_run: FlowRunner) -> None:
    require_packages("torch")
    run = flow_run(FLOW.format(launcher="torchrun"), "--how", "node 0 runs no ranks", files={"ranks.py": ""})
    told = run.fails(END_S)
    assert re.search(r"node 0 \(.*\): finished its step while node 1 waits for it in ", told), told


def test_a_body_that_exits_by_itself_is_told_with_its_exit_code(flow_run: FlowRunner) -> None:
    """Also by a C library's exit. It has not finished its step, though its guard says goodbye."""
    run = flow_run(FLOW.format(launcher="gang"), "--how", "exits")
    told = run.fails(END_S)
    assert re.search(r"node 1 \(.*\): the node's task exited with code 3", told), told
    assert "finished its step" not in told

"""The launcher of examples/custom_launcher runs ranks on all nodes, and tells which of them failed."""

from __future__ import annotations

import re

from support.examples import EXAMPLES, LIMIT
from support.flows import FlowRunner

FLOW = EXAMPLES / "custom_launcher" / "flow.py"


def test_ranks_run_on_all_nodes_and_a_failed_one_is_told(flow_run: FlowRunner) -> None:
    run, failing = flow_run(FLOW), flow_run(FLOW, "--fail", "3")
    run.ok(LIMIT)
    assert run.artifact("join", "parts") == [sum(range(rank, 1000, 4)) for rank in range(4)]
    assert "sum: 499500" in run.output
    output = failing.fails(LIMIT)
    assert "[rank 3] ValueError: rank 3 was told to fail" in output
    assert re.search(r"The first failure was on node 1 \(.*\): rank 3 exited with code 1", output)
    assert re.search(r"\| ValueError: rank 3 was told to fail", output), "node 0 shows it, too"
    assert failing.left(5) == []

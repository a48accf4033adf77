"""The launchers of examples/custom_launcher and custom_daemons run on all nodes, and tell what failed where."""

from __future__ import annotations

import re

from support.examples import EXAMPLES, LIMIT
from support.flows import FlowRunner
from support.requirements import require_packages

SCATTER = EXAMPLES / "custom_launcher" / "flow.py"
DASK = EXAMPLES / "custom_daemons" / "flow.py"


def test_ranks_run_on_all_nodes_and_a_failed_one_is_told(flow_run: FlowRunner) -> None:
    run, failing = flow_run(SCATTER), flow_run(SCATTER, "--fail", "3")
    run.ok(LIMIT)
    assert run.artifact("join", "parts") == [sum(range(rank, 1000, 4)) for rank in range(4)]
    assert "sum: 499500" in run.output
    output = failing.fails(LIMIT)
    assert "[rank 3] ValueError: rank 3 was told to fail" in output
    assert re.search(r"The first failure was on node 1 \(.*\): rank 3 exited with code 1", output)
    assert re.search(r"\| ValueError: rank 3 was told to fail", output), "node 0 shows it, too"
    assert failing.left(5) == []


def test_daemons_run_on_all_nodes_and_a_killed_one_is_told(flow_run: FlowRunner) -> None:
    require_packages("distributed")
    run, failing = flow_run(DASK), flow_run(DASK, "--fail", "1")
    run.ok(LIMIT)
    assert run.artifact("join", "workers") == ["node0", "node1"]
    assert "total: 328350" in run.output
    output = failing.fails(LIMIT)
    told = re.findall(
        r"(\[node 1\])? +The first failure was on node 1 \(.*\): Dask worker 1 was killed by SIGKILL", output
    )
    assert sorted(told) == ["", "[node 1]"], "on every node"
    for each in run, failing:
        assert each.left(5) == []

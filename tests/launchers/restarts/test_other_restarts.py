"""Restarts under the other launchers, and of the same program on every node: one try fails, the next one ends well."""

from __future__ import annotations

import re

import pytest
from restart_flow import RANKS, acts, flow, lines_about_restarts
from support.flows import FlowRun, FlowRunner
from support.requirements import require_packages, require_tool

LIMIT_S = 120.0

FILES = {"ranks.py": RANKS}


def restarted(run: FlowRun, ranks: str, line: str) -> None:
    """The run ends well, after one restart of all ``ranks``, which the log tells once."""
    run.ok(LIMIT_S)
    (found,) = lines_about_restarts(run.output, 1)
    assert re.match(line, found), found
    for number in range(2):
        assert sorted(re.findall(rf"rank (\d) in try {number} ", run.output)) == list(ranks), run.dump()


def test_the_same_program_on_every_node(flow_run: FlowRunner) -> None:
    env = {**acts(try0={1: "with2 progress raise", "*": "stay"}), "RESTARTS": "1"}
    run = flow_run(flow("gang", ""), "--how", "together", env=env, files=FILES)
    restarted(run, "01", r"restart 1 of 1: python\S* exited with code 1.*, on node 1")


def test_without_restarts_a_program_on_every_node_fails_the_gang(flow_run: FlowRunner) -> None:
    env = {**acts(none={1: "0.5 raise", "*": "stay"}), "RESTARTS": "0"}
    output = flow_run(flow("gang", ""), "--how", "together", env=env, files=FILES).fails(LIMIT_S)
    assert "deliberate in rank 1 in try none" in output
    assert "[gang] restart" not in output and "started again" not in output


def test_nodes_that_differ_in_restarts_are_told_so(flow_run: FlowRunner) -> None:
    env = {**acts(none={"*": "stay"}, try0={"*": "stay"}), "RESTARTS": "0 1"}
    run = flow_run(flow("gang", ""), "--how", "together", env=env, files=FILES)
    output = run.fails(LIMIT_S)
    told = "The nodes call current.gang.run_together() differently: restarts is 0 on node 0 and 1 on node 1."
    assert told in output and "port" not in output, output
    assert not list(run.folder.glob("begun-*")), "nothing was started"


@pytest.mark.parametrize("how", ["script", "function"])
def test_tensorflow(flow_run: FlowRunner, how: str) -> None:
    require_packages("tensorflow")
    env = acts(try0={1: "with2 progress raise", "*": "stay"})
    run = flow_run(flow("tensorflow", "restarts=1"), "--how", how, env=env, files=FILES)
    restarted(run, "01", r"restart 1 of 1: \S+ exited with code 1, on node 1 \(RuntimeError: deliberate in rank 1")
    if how == "function":
        assert run.artifact("join", "returned") == ["0 of try 1", "1 of try 1"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["script", "function"])
def test_deepspeed(flow_run: FlowRunner, how: str) -> None:
    require_packages("deepspeed")
    env = acts(try0={1: "with2 progress kill", "*": "stay"})
    run = flow_run(flow("deepspeed", "restarts=1"), "--how", how, env={**env, "SLOTS": "1"}, files=FILES)
    run.ok(2 * LIMIT_S)
    (found,) = lines_about_restarts(run.output, 1)
    assert re.match(r"restart 1 of 1: rank 1 on node \d was killed by SIGKILL", found), found
    tried = [sorted(re.findall(rf"rank (\d) in try {number} ", run.output)) for number in range(2)]
    assert tried[0] == tried[1] and len(tried[0]) >= 2, run.dump()
    if how == "function":
        assert run.artifact("join", "returned") == [f"{rank} of try 1" for rank in tried[0]]


@pytest.mark.slow
def test_mpi(flow_run: FlowRunner) -> None:
    require_tool("mpirun")
    env = acts(try0={2: "with4 progress 0.3 kill", "*": "stay"})
    run = flow_run(flow("mpi", "restarts=1"), "--how", "mpi", env=env, files=FILES)
    restarted(run, "0123", r"restart 1 of 1: rank 2 on node \d was killed by SIGKILL")

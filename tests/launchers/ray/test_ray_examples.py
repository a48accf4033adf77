"""Each example with Ray, run as its docstring says, does what its docstring says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.examples import EXAMPLES, printed
from support.flows import FlowRunner
from support.requirements import require_packages

RAY = EXAMPLES / "ray"

LIMIT = 300.0
"""Seconds: tells "slow" from "hangs". A flow with Ray takes a quarter of a minute on a machine that is idle."""


@pytest.mark.slow
def test_every_node_counts_by_one_actor(flow_run: FlowRunner) -> None:
    require_packages("ray")
    run = flow_run(RAY / "counter.py", "--nodes", "3").ok(LIMIT)
    assert run.artifact("join", "counts") == {0: 5, 1: 5, 2: 5}
    assert re.findall(r"node (\d) did 5 tasks", run.output) == ["0", "1", "2"]


@pytest.mark.slow
def test_a_script_runs_on_the_cluster(flow_run: FlowRunner) -> None:
    require_packages("ray", "numpy")
    run = flow_run(RAY / "script.py").ok(LIMIT)
    # With 8 million darts, six standard deviations are 0.0035.
    assert float(printed(run.output, r"pi is about (\S+), by 8 tasks on 2 nodes")) == pytest.approx(3.1416, abs=0.004)
    assert "pi is about" in run.node_log("throw", 0)
    assert "pi is about" not in run.node_log("throw", 1)


@pytest.mark.big
def test_data_is_worked_on_by_all_nodes(flow_run: FlowRunner) -> None:
    require_packages("ray", "pandas", "pyarrow")
    run = flow_run(RAY / "data.py").ok(LIMIT)
    assert "the longest sequence is that of 17647, with 278 steps" in run.output
    steps = [collatz(number) for number in range(1, 20_001)]
    assert run.artifact("end", "mean") == pytest.approx(sum(steps) / len(steps))
    assert run.artifact("end", "nodes") == 2


def collatz(number: int) -> int:
    steps = 0
    while number > 1:
        number = 3 * number + 1 if number % 2 else number // 2
        steps += 1
    return steps


@pytest.mark.big
def test_tune_goes_on_from_the_checkpoints_of_the_attempt_before(flow_run: FlowRunner) -> None:
    require_packages("ray", "sklearn", "pandas", "pyarrow")
    run = flow_run(RAY / "tune_digits.py").ok(LIMIT)
    assert "RuntimeError: asked to fail after round 1" in run.output
    assert "1 of 3 trials failed" in run.output
    folder = printed(run.output, r"taking up the search in (\S+)")
    assert folder.endswith("/search/0/digits"), "the first attempt's"
    # The broken trial went on after its two rounds; the others were not run again.
    assert run.artifact("end", "first_rounds") == {1e-4: 0, 1e-3: 2, 1e-2: 0}
    assert float(printed(run.output, r"test accuracy ([\d.]+)%")) >= 95
    assert run.artifact("end", "model").predict([[0.0] * 64]).shape == (1,)


def test_no_example_with_ray_is_left_out() -> None:
    tested = set(re.findall(r'RAY / "(\w+\.py)"', Path(__file__).read_text()))
    started_by_script = {"pi.py"}
    assert tested == {file.name for file in RAY.glob("*.py")} - started_by_script

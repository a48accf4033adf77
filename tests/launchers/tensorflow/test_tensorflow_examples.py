"""Each example with TensorFlow, and with JAX, run as its docstring says, does what its docstring says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.examples import EXAMPLES, printed
from support.flows import FlowRunner
from support.frameworks.tensorflow import QUIET
from support.requirements import require_packages

TENSORFLOW, JAX = EXAMPLES / "tensorflow", EXAMPLES / "jax"

LIMIT = 300.0
"""Seconds: tells "slow" from "hangs". A flow with TensorFlow takes half a minute on two processors."""


@pytest.mark.slow
def test_two_workers_learn_the_digits(flow_run: FlowRunner) -> None:
    require_packages("tensorflow", "sklearn")
    run = flow_run(TENSORFLOW / "digits.py", env=QUIET).ok(LIMIT)
    assert float(printed(run.output, r"test accuracy ([\d.]+)%")) >= 95
    assert printed(run.output, r"saved by node (\d)") == "0"
    chief, other = (run.node_tasks("train")[node] for node in (0, 1))
    assert len(chief["model"].data) > 10_000 and "model" not in other
    losses = chief["losses"].data
    assert losses == other["losses"].data, "the loss is that of all workers"
    assert losses[-1] < losses[0] / 10
    assert not list(run.folder.glob("*.keras"))


@pytest.mark.big
def test_a_script_fits_with_tf_keras(flow_run: FlowRunner) -> None:
    require_packages("tensorflow", "tf_keras", "sklearn")
    run = flow_run(TENSORFLOW / "run_script.py", env=QUIET).ok(LIMIT)
    accuracies = re.findall(r"test accuracy ([\d.]+)% with 2 workers", run.output)
    assert len(accuracies) == 2 and accuracies[0] == accuracies[1], "both have the same model"
    assert float(accuracies[0]) >= 95
    assert int(printed(run.output, r"the model is (\d+) bytes")) == len(run.artifact("join", "model")) > 10_000


@pytest.mark.slow
def test_the_failure_on_purpose_is_told(flow_run: FlowRunner) -> None:
    require_packages("tensorflow")
    run = flow_run(TENSORFLOW / "fails_on_purpose.py", env=QUIET)
    output = run.fails(LIMIT)
    cause = "ValueError: step 3: a digit's label is between 0 and 9, not 12"
    assert re.search(rf"\[node 1\] {re.escape(cause)}", output)
    # Node 0 raises the failure report, or its guard prints it.
    assert re.search(rf"The first failure was on node 1 \(\S+\): the step's body raised {re.escape(cause)}", output)
    assert "never reached" not in output
    assert run.left(5) == []


@pytest.mark.slow
def test_two_processes_of_jax_learn_the_digits(flow_run: FlowRunner) -> None:
    require_packages("jax", "sklearn")
    run = flow_run(JAX / "digits.py", env=QUIET).ok(LIMIT)
    assert float(printed(run.output, r"test accuracy ([\d.]+)%")) >= 95
    assert sorted(re.findall(r"process (\d) of 2, 2 devices", run.output)) == ["0", "1"]
    first, other = (run.node_tasks("train")[node] for node in (0, 1))
    assert {name: array.shape for name, array in first["weights"].data.items()} == {
        "w0": (64, 128),
        "b0": (128,),
        "w1": (128, 10),
        "b1": (10,),
    }
    assert "weights" not in other
    losses = first["losses"].data
    assert losses == pytest.approx(other["losses"].data), "the loss is that of both"
    assert losses[-1] < losses[0] / 10


def test_no_example_with_tensorflow_or_jax_is_left_out() -> None:
    tested = set(re.findall(r'flow_run\((TENSORFLOW|JAX) / "(\w+\.py)"', Path(__file__).read_text()))
    there = {(folder.name.upper(), file.name) for folder in (TENSORFLOW, JAX) for file in folder.glob("*.py")}
    assert tested == there - {("TENSORFLOW", "train.py")}, "run_script.py starts that one"

"""Each example, run as its docstring says, does what its docstring says."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from support.examples import EXAMPLES, LIMIT, printed, training  # noqa: F401 - a fixture
from support.faults import kill_process
from support.flows import FlowRunner
from support.frameworks.mpi import MPICH, OPEN_MPI_4, OPEN_MPI_5, path_with
from support.processes import environment_of
from support.requirements import require_packages, require_tool

# ---------------------------------------------------------------- torchrun


@pytest.mark.usefixtures("training")
def test_the_demo_learns_the_digits(flow_run: FlowRunner) -> None:
    run = flow_run(EXAMPLES / "torchrun" / "digits.py").ok(LIMIT)
    assert float(printed(run.output, r"test accuracy ([\d.]+)%")) >= 95
    assert printed(run.output, r"saved by (node \d)") == "node 0"
    assert run.artifact("end", "accuracy") >= 0.95
    assert {name: tuple(tensor.shape) for name, tensor in run.artifact("join", "model").items()} == {
        "0.weight": (128, 64),
        "0.bias": (128,),
        "2.weight": (10, 128),
        "2.bias": (10,),
    }
    losses = run.artifact("join", "losses")
    assert {node: sorted(ranks) for node, ranks in losses.items()} == {
        "node 0": ["rank0", "rank1"],
        "node 1": ["rank2", "rank3"],
    }
    for ranks in losses.values():
        for loss in ranks.values():
            assert len(loss) == 20 and loss[-1] < loss[0] / 4
    tasks = run.node_tasks("train")
    assert "model" in tasks[0] and "model" not in tasks[1], "control alone keeps the model"
    assert list(run.folder.glob("*.ckpt*")) == [], "the checkpoint is not needed once the model is an artifact"


@pytest.mark.slow
@pytest.mark.usefixtures("training")
def test_the_demo_resumes_from_its_checkpoint(flow_run: FlowRunner) -> None:
    run = flow_run(EXAMPLES / "torchrun" / "digits.py", "--epochs", "60")
    run.wait_for("epoch 10: loss", LIMIT)
    ranks = {environment_of(process.pid)["RANK"]: process.pid for process in run.find("train_digits.py.* --losses")}
    assert sorted(ranks) == ["0", "1", "2", "3"]
    kill_process(ranks["3"])
    run.ok(LIMIT)
    resumed = int(printed(run.output, r"resuming after epoch (\d+)"))
    assert resumed >= 10
    assert len(re.findall(r"epoch 59: loss", run.output)) == 1
    assert len(run.artifact("join", "losses")["node 1"]["rank2"]) == 59 - resumed
    assert run.artifact("end", "accuracy") >= 0.95


@pytest.mark.big
@pytest.mark.usefixtures("training")
def test_the_function_form_does_the_same(flow_run: FlowRunner) -> None:
    run = flow_run(EXAMPLES / "torchrun" / "digits_function.py").ok(LIMIT)
    assert float(printed(run.output, r"test accuracy ([\d.]+)%")) >= 95
    assert run.artifact("join", "ranks") == [[0, 1, 2, 3], [2, 3]]
    losses = run.artifact("end", "losses")
    assert len(losses) == 4 and all(len(loss) == 20 and loss[-1] < loss[0] / 4 for loss in losses)


@pytest.mark.usefixtures("training")
def test_the_failure_on_purpose_is_told(flow_run: FlowRunner) -> None:
    run = flow_run(EXAMPLES / "torchrun" / "fails_on_purpose.py")
    output = run.fails(LIMIT)
    assert "ValueError: step 3: a digit's label is between 0 and 9, not 12" in output
    assert re.search(r"rank 3\b", output) and re.search(r"node 1\b", output)
    assert "never reached" not in output
    assert run.left(5) == []


# ---------------------------------------------------------------- deepspeed


@pytest.mark.big
@pytest.mark.usefixtures("training")
@pytest.mark.parametrize("stage", [1, 3])
def test_zero_learns_the_digits_and_goes_on_after_a_failure(flow_run: FlowRunner, stage: int) -> None:
    require_packages("deepspeed")
    require_tool("g++", "g++")
    run = flow_run(EXAMPLES / "deepspeed" / "digits.py", "--stage", str(stage)).ok(LIMIT)
    assert "asked to fail after epoch 5" in run.output
    assert "resuming after epoch 5" in run.output
    assert float(printed(run.output, rf"test accuracy ([\d.]+)% with ZeRO stage {stage}")) >= 95


# ---------------------------------------------------------------- mpi


@pytest.mark.slow
def test_mpi_hello(flow_run: FlowRunner) -> None:
    run = flow_run(EXAMPLES / "mpi" / "hello.py", env={"PATH": path_with(MPICH)}).ok(LIMIT)
    assert printed(run.output, r"the other nodes: (.*)") == "127.0.0.1"
    assert re.findall(r"rank (\d) of 4 on \S+", run.output) == ["0", "1", "2", "3"]


@pytest.mark.slow
def test_mpi_matrix(flow_run: FlowRunner) -> None:
    run = flow_run(EXAMPLES / "mpi" / "matrix.py", "--size", "50", env={"PATH": path_with(OPEN_MPI_4)}).ok(LIMIT)
    assert float(printed(run.output, r"\d+ ranks, largest error (\S+)")) < 1e-9
    assert float(printed(run.output, r"the product's trace is (\S+)")) == pytest.approx(run.artifact("end", "trace"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [OPEN_MPI_4, OPEN_MPI_5, MPICH])
def test_mpi_compiled(flow_run: FlowRunner, kind: str) -> None:
    run = flow_run(EXAMPLES / "mpi" / "compiled.py", env={"PATH": path_with(kind)}).ok(LIMIT)
    assert printed(run.output, r"pi is (\S+) by \d+ ranks") == "3.1415926536"
    assert not list(run.folder.glob("pi-*"))


# ---------------------------------------------------------------- gang


@pytest.mark.slow
def test_simple(flow_run: FlowRunner) -> None:
    run = flow_run(EXAMPLES / "gang" / "simple.py").ok(LIMIT)
    assert run.artifact("join", "squares") == [0, 1, 4]
    assert "squares: [0, 1, 4]" in run.output
    for node in range(3):
        assert f"node {node} of 3 on " in run.node_log("compute", node)


@pytest.mark.slow
def test_sockets(flow_run: FlowRunner) -> None:
    run = flow_run(EXAMPLES / "gang" / "sockets.py").ok(LIMIT)
    assert run.artifact("join", "messages") == ["hello from node 1", "hello from node 2"]


@pytest.mark.slow
def test_redis_coordination(flow_run: FlowRunner) -> None:
    require_tool("redis-server", "redis-server")
    run = flow_run(EXAMPLES / "gang" / "redis_coordination.py").ok(LIMIT)
    assert sum(run.artifact("join", "done")) == 30
    assert run.artifact("join", "total") == sum(number**2 for number in range(30))


@pytest.mark.slow
@pytest.mark.usefixtures("training")
def test_torch_in_step(flow_run: FlowRunner) -> None:
    run = flow_run(EXAMPLES / "gang" / "torch_in_step.py").ok(LIMIT)
    for slope, intercept in run.artifact("join", "lines"):
        assert slope == pytest.approx(3, abs=0.05) and intercept == pytest.approx(1, abs=0.05)


def test_local_testing(flow_run: FlowRunner) -> None:
    run = flow_run(EXAMPLES / "gang" / "local_testing.py").ok(LIMIT)
    assert run.artifact("join", "results") == [0, 2]
    assert len(re.findall(r"on .+, process \d+", run.output)) == 2


@pytest.mark.slow
def test_checkpoint_recovery(flow_run: FlowRunner) -> None:
    run = flow_run(EXAMPLES / "gang" / "checkpoint_recovery.py").ok(LIMIT)
    assert "node 1 fails on purpose in epoch 2 of the first attempt" in run.output
    assert run.artifact("join", "epochs") == [2, 3, 4]
    assert run.artifact("join", "total") == sum(2 * epoch * 10 + 1 for epoch in range(5))
    assert list(run.folder.glob("*.ckpt*")) == []


@pytest.mark.slow
@pytest.mark.usefixtures("training")
@pytest.mark.parametrize("hook", ["fp16", "powersgd"])
def test_compression_hook(flow_run: FlowRunner, hook: str) -> None:
    run = flow_run(EXAMPLES / "gang" / "compression_hook.py", "--hook", hook).ok(LIMIT)
    assert run.artifact("join", "loss") < 0.01
    assert 0 < run.artifact("join", "difference") < 0.05, "compressed, and yet as good"


@pytest.mark.slow
def test_plain_parallel_beside_ours(flow_run: FlowRunner) -> None:
    # Metaflow's own @parallel starts its nodes with the `python` of PATH.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = flow_run(EXAMPLES / "gang" / "parallel_beside.py", env={"PATH": path}).ok(LIMIT)
    assert run.artifact("join", "results") == [0, 1, 4]


def test_no_example_is_left_out() -> None:
    tested = set(re.findall(r'/ "(\w+\.py)"', Path(__file__).read_text()))
    # tests/launchers/ray, tests/launchers/tensorflow and test_recipes.py do the same for theirs.
    there = {
        file.name for file in EXAMPLES.rglob("*.py") if file.parent.name not in ("jax", "ray", "recipes", "tensorflow")
    }
    started_by_others = {"train_digits.py", "hello_ranks.py", "matrix_product.py", "horovod_train.py", "train_zero.py"}
    # tests/launchers/mpi builds Horovod, tests/launchers/huggingface looks at the cards, and test_custom_launcher.py
    # runs launchers of a user's own.
    elsewhere = {"horovod_digits.py", "card.py", "flow.py", "scatter.py", "dask_cluster.py"}
    assert tested == there - started_by_others - elsewhere

"""An argument that a launcher's run() does not have: the sentence says where it belongs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import metaflow  # noqa: F401 - makes the package importable
import pytest

from metaflow_extensions.gang.core.calls.misplaced_arguments import suggesting
from metaflow_extensions.gang.core.exceptions import BadAttribute
from metaflow_extensions.gang.launchers.deepspeed.launcher import DeepspeedExecutor
from metaflow_extensions.gang.launchers.deepspeed.single_node import SingleNode
from metaflow_extensions.gang.launchers.mpi.launcher import MPIExecutor
from metaflow_extensions.gang.launchers.ray.cluster import RayCluster
from metaflow_extensions.gang.launchers.tensorflow.launcher import TensorflowExecutor
from metaflow_extensions.gang.launchers.torchrun.launcher import TorchrunExecutor
from metaflow_extensions.gang.launchers.torchrun.single_node import TorchrunSingleNodeMultiGPU


@pytest.mark.parametrize(
    ("run", "given", "says"),
    [
        (TorchrunExecutor.run, {"master_port": 29500}, "Did you mean torchrun_args={'master_port': 29500}?"),
        (TorchrunExecutor.run, {"max_restarts": 2}, "Did you mean torchrun_args={'max_restarts': 2}?"),
        (TorchrunExecutor.run, {"entrypont": "train.py"}, "Did you mean entrypoint?"),
        (TorchrunExecutor.run, {"epochs": 3}, "Did you mean entrypoint_args={'epochs': 3}, for the program's own"),
        (TorchrunSingleNodeMultiGPU.run, {"tee": 3}, "Did you mean torchrun_args={'tee': 3}?"),
        (DeepspeedExecutor.run, {"num_gpus": 4}, "Did you mean deepspeed_args={'num_gpus': 4}?"),
        (SingleNode.run, {"bind_cores_to_rank": True}, "Did you mean deepspeed_args={'bind_cores_to_rank': True}?"),
        (MPIExecutor.run, {"n": 4}, "Did you mean args={'n': 4}?"),
        (MPIExecutor.exec, {"np": 4}, "Did you mean args={'np': 4}?"),
        (TensorflowExecutor.run, {"epochs": 3}, "Did you mean entrypoint_args={'epochs': 3}"),
        (RayCluster.run, {"samples": 20}, "Did you mean entrypoint_args={'samples': 20}"),
    ],
)
def test_an_option_beside_its_dict_is_told_where_it_belongs(
    run: Callable[..., Any], given: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadAttribute) as error:
        run(None, **given)
    assert f"run() has no argument {next(iter(given))}. {says}" in str(error.value).replace("exec()", "run()")


def test_what_a_function_has_is_passed_on() -> None:
    @suggesting("f", {})
    def f(one: int, two: int = 2) -> int:
        return one + two

    assert (f(1), f(1, two=5), f.__name__) == (3, 6, "f")
    with pytest.raises(BadAttribute, match="It has one, two"):
        f(1, three=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        f()  # type: ignore[call-arg]

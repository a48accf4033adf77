"""The flows of the doctor's smoke test, as text: for each launcher two nodes, whose ranks add their ones up to two."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

_FLOW = """
{imports}


class Smoke(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @{decorator}
    @step
    def train(self):
{body}
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Smoke()
"""


@dataclass(frozen=True)
class Smoke:
    """One launcher's test.

    Attributes
    ----------
    launcher : str
        As in the doctor's table.
    decorator, imports, body : str
        The step's decorator, what it comes from, and the step's body.
    ranks : str
        A script for the ranks, ``ranks.py`` beside the flow; "" without one.
    """

    launcher: str
    decorator: str
    body: str
    imports: str = ""
    ranks: str = ""

    def flow(self) -> str:
        """The flow's text."""
        imports = self.imports or f"from metaflow import FlowSpec, current, {self.decorator.partition('(')[0]}, step"
        return _FLOW.format(
            imports=imports, decorator=self.decorator, body=textwrap.indent(self.body.strip("\n"), " " * 8)
        )


_TORCH_RANKS = """
import torch
import torch.distributed as dist

dist.init_process_group("nccl" if torch.cuda.device_count() else "gloo")
ones = torch.ones(1, device="cuda" if torch.cuda.device_count() else "cpu")
dist.all_reduce(ones)
assert ones.item() == 2, ones
dist.destroy_process_group()
"""

_DEEPSPEED_RANKS = f"import deepspeed{_TORCH_RANKS}"
"""DeepSpeed's own collectives would compile an extension for the processor first, which takes minutes."""

_MPI_RANKS = """
import importlib.util

if importlib.util.find_spec("mpi4py"):
    from mpi4py import MPI

    assert MPI.COMM_WORLD.allreduce(1) == 2
"""

_HOROVOD_RANKS = """
import horovod.torch as hvd
import torch

hvd.init()
assert hvd.allreduce(torch.ones(1), op=hvd.Sum).item() == 2
"""

SMOKES = (
    Smoke(
        "@metaflow_ray",
        "resources(cpu=1)\n    @metaflow_ray",  # Ray starts a worker for each processor beforehand
        """
import ray

ray.init()
assert sum(node["Alive"] for node in ray.nodes()) == 2
one = ray.remote(num_cpus=1)(lambda: 1)
ones = [one.options(scheduling_strategy="SPREAD").remote() for _ in range(2)]
assert sum(ray.get(ones)) == 2
""",
        "from metaflow import FlowSpec, current, metaflow_ray, resources, step",
    ),
    Smoke(
        "@deepspeed",
        "deepspeed",
        'current.deepspeed.run(entrypoint="ranks.py", deepspeed_args={"num_gpus": 1})',
        ranks=_DEEPSPEED_RANKS,
    ),
    Smoke(
        "@tensorflow",
        "tensorflow",
        """
import tensorflow as tf

strategy = tf.distribute.MultiWorkerMirroredStrategy()
ones = strategy.run(lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.ones(())))
assert float(strategy.experimental_local_results(ones)[0]) == strategy.num_replicas_in_sync >= 2
""",
    ),
    Smoke("@torchrun", "torchrun(nproc_per_node=1)", 'current.torch.run(entrypoint="ranks.py")', ranks=_TORCH_RANKS),
    Smoke(
        "horovod_run",
        "gang",
        'horovod_run("ranks.py", nproc_per_node=1)',
        "from metaflow import FlowSpec, current, gang, horovod_run, step",
        _HOROVOD_RANKS,
    ),
    Smoke(
        "@jax",
        "jax",
        """
import jax
from jax.experimental import multihost_utils
import numpy

jax.distributed.initialize()
assert multihost_utils.process_allgather(numpy.ones(1)).sum() == 2
""",
    ),
    Smoke(
        "@mpi",
        "mpi",
        'current.mpi.run(args=["-n", "2"], program=["python", os.path.abspath("ranks.py")])',
        "import os\n\nfrom metaflow import FlowSpec, current, mpi, step",
        _MPI_RANKS,
    ),
    Smoke("@gang", "gang", "assert current.gang.all_gather(current.gang.node_index) == [0, 1]"),
)
"""Those that take longest come first, so that none runs alone at the end."""

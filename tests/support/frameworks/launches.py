"""What each launcher starts on three nodes, for the tests of launchers on a backend."""

from __future__ import annotations

FLOW = """
import json
import metaflow
from metaflow import FlowSpec, current, step

class Launches(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=3)

    @metaflow.BACKEND
    @metaflow.DECORATOR
    @step
    def work(self):
        self.found = None
        BODY
        self.next(self.join)

    @step
    def join(self, inputs):
        self.found = inputs[0].found
        self.next(self.end)

    @step
    def end(self):
        print("RESULT", json.dumps(self.found))

if __name__ == "__main__":
    Launches()
"""

MPI = """
from mpi4py import MPI

print("RANKS", MPI.COMM_WORLD.allgather((MPI.COMM_WORLD.rank, MPI.Get_processor_name())))
"""

DEEPSPEED = """
import socket

def train():
    '''Two steps by ZeRO-1, each rank on numbers of its own: host, rank, parts of the optimizer's state, weights.'''
    import deepspeed, torch
    import torch.distributed as dist

    # What ranks of one node speak by; to build it takes a compiler and a minute, anew in each of these containers.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "Adam", "params": {"lr": 0.1, "torch_adam": True}},
        "zero_optimization": {"stage": 1},
    }
    model, optimizer, *_ = deepspeed.initialize(model=torch.nn.Linear(4, 1), config=config)
    for _ in range(2):
        model.backward(model(torch.full((2, 4), float(rank + 1))).square().mean())
        model.step()
    print(f"rank {rank} is done")
    weights = model.module.weight.detach().flatten().tolist()
    dist.destroy_process_group()
    return [socket.gethostname(), rank, optimizer.partition_count, weights]
"""

RAY = """
import socket

def visit():
    '''Where tasks for each of the nodes ran, and what they got; all of Ray's object stores together in bytes.'''
    import ray

    ray.init(logging_level="error")

    @ray.remote(num_cpus=1)
    def visits(index, data):
        print(f"node {index} is visited")
        return socket.gethostname(), len(data)

    data = ray.put(bytes(5_000_000))  # too large for a message: it goes through the stores
    visited = [visits.options(resources={f"node:{index}": 1}).remote(index, data) for index in range(3)]
    return [ray.get(visited), ray.cluster_resources()["object_store_memory"]]
"""

TENSORFLOW = """
def total(index):
    '''A sum over all nodes, and of how many.'''
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    @tf.function
    def all_reduce(value):
        return strategy.reduce("sum", strategy.run(tf.identity, args=(value,)), axis=None)

    found = float(all_reduce(tf.constant(10.0**index)))
    print(f"node {index} has {found}")
    return [found, strategy.num_replicas_in_sync]
"""

JAX = """
def total(index):
    '''A sum over all nodes, and of how many.'''
    import jax

    jax.distributed.initialize()
    all_reduce = jax.pmap(lambda value: jax.lax.psum(value, "all"), axis_name="all")
    found = float(all_reduce(jax.numpy.full(1, 10.0**index))[0])
    print(f"node {index} has {found}")
    return [found, jax.process_count()]
"""


def launches(backend: str, decorator: str, body: str) -> str:
    """A flow whose step ``work`` has these decorators, and leaves in ``self.found`` what its last step prints."""
    return FLOW.replace("BACKEND", backend).replace("DECORATOR", decorator).replace("BODY", body)

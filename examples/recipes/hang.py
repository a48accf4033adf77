"""A rank that hangs, and @pyspy, which keeps the stacks of all processes: hang_stacks.py shows where the ranks stood.

    python examples/recipes/hang.py run              # fails after 25 s, on purpose
    python examples/recipes/hang_stacks.py RUN

Needs torch and metaflow-pyspy: `pip install torch metaflow-pyspy`.
"""

from metaflow import FlowSpec, current, pyspy, step, timeout, torchrun


def load_shard():
    """What hangs in rank 1: a lock that nobody releases."""
    import threading

    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def train():
    import os

    import torch.distributed as dist

    dist.init_process_group("gloo")
    if os.environ["RANK"] == "1":
        load_shard()
    dist.barrier()


class Hang(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @pyspy(interval=5)
    @timeout(seconds=25)
    @torchrun
    @step
    def train(self):
        current.torch.run(entrypoint=train)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Hang()

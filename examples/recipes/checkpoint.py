"""Ranks save checkpoints with metaflow-checkpoint while they train, and @retry goes on from the last one.

python examples/recipes/checkpoint.py run

A rank fails in epoch 2 of the first attempt. Prints "epochs of the last attempt: [2, 3]": none is done twice.
"""

import json
import os

from metaflow import FlowSpec, checkpoint, current, retry, step, torchrun

EPOCHS = 4


def train(begin, fails):
    """In every rank: a script does the same."""
    import torch
    import torch.distributed as dist
    from metaflow import Checkpoint

    dist.init_process_group("gloo")
    rank, total, done = dist.get_rank(), torch.tensor(float(begin["total"])), []
    for epoch in range(begin["epoch"], EPOCHS):
        if fails and epoch == 2 and rank == 1:
            raise RuntimeError("rank 1 fails on purpose in epoch 2 of the first attempt")
        share = torch.tensor(float(epoch * 10 + rank))
        dist.all_reduce(share)
        total += share
        done.append(epoch)
        if rank == 0:
            os.makedirs("state", exist_ok=True)
            with open("state/state.json", "w") as file:
                json.dump({"epoch": epoch + 1, "total": float(total)}, file)
            Checkpoint().save("state", name=f"epoch-{epoch}")
        dist.barrier()  # nobody is an epoch ahead of what is saved
    return done, float(total)


class Checkpoints(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @torchrun(nproc_per_node=1)
    @step
    def train(self):
        begin = {"epoch": 0, "total": 0.0}
        if current.checkpoint.is_loaded:
            with open(os.path.join(current.checkpoint.directory, "state.json")) as file:
                begin = json.load(file)
        begin = current.gang.broadcast(begin)
        arguments = {"begin": begin, "fails": current.retry_count == 0}
        self.results = current.torch.run(entrypoint=train, entrypoint_args=arguments)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.epochs, self.total = inputs[0].results[0]
        print("epochs of the last attempt:", self.epochs)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Checkpoints()

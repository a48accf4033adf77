"""Four ranks on two nodes share out a sum: `python flow.py run`. With `--fail 3`, rank 3 raises."""

import os

from metaflow import FlowSpec, Parameter, current, step
from scatter import scatter


def share(numbers, fail):
    """This rank's part of the sum."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank == fail:
        raise ValueError(f"rank {rank} was told to fail")
    if fail >= 0:
        os.read(os.pipe()[0], 1)  # the others wait for it, as in a collective, until the gang ends them
    return sum(range(rank, numbers, world))


class ScatterFlow(FlowSpec):
    fail = Parameter("fail", type=int, default=-1)

    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @scatter(nproc=2)
    @step
    def work(self):
        self.parts = current.scatter.run(share, {"numbers": 1000, "fail": self.fail})
        self.next(self.join)

    @step
    def join(self, inputs):
        self.parts = inputs[0].parts  # node 0 has those of all ranks
        self.next(self.end)

    @step
    def end(self):
        print("parts:", self.parts, "sum:", sum(self.parts))


if __name__ == "__main__":
    ScatterFlow()

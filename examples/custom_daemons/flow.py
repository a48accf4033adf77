"""Two Dask workers on two nodes add up squares: `python flow.py run`. With `--fail 1`, the worker of node 1 dies."""

import os

from dask_cluster import dask
from metaflow import FlowSpec, Parameter, current, step


def die():
    os.kill(os.getpid(), 9)


def square(number):
    return number * number


class DaskFlow(FlowSpec):
    fail = Parameter("fail", type=int, default=-1)

    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @dask(threads=1)
    @step
    def work(self):
        client = current.dask.client()
        workers = client.scheduler_info()["workers"].values()
        self.workers = sorted(worker["name"] for worker in workers)
        if self.fail >= 0:
            client.submit(die, workers=f"node{self.fail}").result()
        self.total = sum(client.gather(client.map(square, range(100))))
        self.next(self.join)

    @step
    def join(self, inputs):
        self.workers, self.total = inputs[0].workers, inputs[0].total  # the body ran on node 0 alone
        self.next(self.end)

    @step
    def end(self):
        print("workers:", self.workers, "total:", self.total)


if __name__ == "__main__":
    DaskFlow()

"""Metaflow's own @parallel, beside our package: nothing about it changes.

    python examples/gang/parallel_beside.py run

Prints "results: [0, 1, 4]". (Metaflow starts the local nodes with the `python` of your PATH: activate the environment.)
"""

from metaflow import FlowSpec, current, parallel, step


class ParallelBeside(FlowSpec):
    @step
    def start(self):
        self.next(self.compute, num_parallel=3)

    @parallel
    @step
    def compute(self):
        self.result = current.parallel.node_index**2
        print(f"node {current.parallel.node_index} of {current.parallel.num_nodes} computed {self.result}")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.results = [node.result for node in inputs]
        print(f"results: {self.results}")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ParallelBeside()

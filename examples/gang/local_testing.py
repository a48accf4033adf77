"""Multi-node code tried on a laptop: each node is a process here, and nothing else is different.

    python examples/gang/local_testing.py run

The same file runs unchanged with `--with kubernetes` or `--with batch`. Prints "results: [0, 2]" and where they ran.
"""

import os

from metaflow import FlowSpec, current, gang, step


class LocalTesting(FlowSpec):
    @step
    def start(self):
        self.next(self.compute, num_parallel=2)

    @gang
    @step
    def compute(self):
        self.result = current.gang.node_index * 2
        # True on a laptop and on a cluster alike: one process for each node, and one address that all reach.
        where = (current.gang.nodes[current.gang.node_index].hostname, os.getpid())
        self.places = current.gang.all_gather(where)
        assert len(set(self.places)) == current.gang.num_nodes
        assert current.gang.main_address == current.gang.nodes[0].address
        # What Metaflow itself says of the node stays as it is.
        assert current.parallel.node_index == current.gang.node_index
        assert current.parallel.num_nodes == current.gang.num_nodes
        self.next(self.join)

    @step
    def join(self, inputs):
        self.results = [node.result for node in inputs]
        print(f"results: {self.results}")
        for hostname, pid in inputs[0].places:
            print(f"on {hostname}, process {pid}")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    LocalTesting()

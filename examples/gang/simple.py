"""A bare gang: three nodes that start together, meet, and tell each other what they have.

    python examples/gang/simple.py run

Prints "squares: [0, 1, 4]": the join step's view of what the nodes told each other.
"""

from metaflow import FlowSpec, current, gang, step


class Simple(FlowSpec):
    @step
    def start(self):
        self.next(self.compute, num_parallel=3)

    @gang
    @step
    def compute(self):
        me = current.gang.node_index
        print(f"node {me} of {current.gang.num_nodes} on {current.gang.nodes[me].hostname}")
        current.gang.barrier()  # nobody passes before all are here
        self.squares = current.gang.all_gather(me**2)  # the same list on every node, in their order
        self.greeting = current.gang.broadcast("hello from node 0" if current.gang.is_control else None)
        self.next(self.join)

    @step
    def join(self, inputs):
        views = [node.squares for node in inputs]
        assert all(view == views[0] for view in views)
        assert {node.greeting for node in inputs} == {"hello from node 0"}
        self.squares = views[0]
        print(f"squares: {self.squares}")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Simple()

"""One counter for all nodes: an actor on the cluster, and tasks on every node that count by it.

    python examples/ray/counter.py run

The body of a @metaflow_ray step runs on the head node, and `ray.init()` in it joins the cluster of all nodes. Each node
has a resource of its own, `node:0`, `node:1` and so on, by which a task is sent to it. Prints how many tasks each node
did. Needs Ray: `pip install "ray[default]"`.
"""

from collections import Counter

from metaflow import FlowSpec, Parameter, current, metaflow_ray, step

TASKS = 5


class Tally:
    """Counts for whoever calls it, from wherever. As an actor it is one for all."""

    def __init__(self):
        self.counts = Counter()

    def add(self, who):
        self.counts[who] += 1

    def read(self):
        return dict(self.counts)


def work(tally):
    """Tells the tally on which node it runs."""
    import ray

    ray.get(tally.add.remote(ray.get_runtime_context().get_node_id()))


class CountOnNodes(FlowSpec):
    nodes = Parameter("nodes", default=2, help="how many nodes")

    @step
    def start(self):
        self.next(self.count, num_parallel=self.nodes)

    @metaflow_ray
    @step
    def count(self):
        import ray  # here, so that the other steps need no Ray

        ray.init()
        tally = ray.remote(num_cpus=0)(Tally).remote()
        task = ray.remote(work)
        everywhere = [index for index in range(self.nodes) for _ in range(TASKS)]
        ray.get([task.options(resources={f"node:{index}": 0.01}).remote(tally) for index in everywhere])
        counts = ray.get(tally.read.remote())
        self.counts = {node.index: counts.get(node.node_id, 0) for node in current.ray.nodes}
        self.next(self.join)

    @step
    def join(self, inputs):
        self.counts = inputs[0].counts  # node 0's: the body ran there alone
        for index, count in self.counts.items():
            print(f"node {index} did {count} tasks")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    CountOnNodes()

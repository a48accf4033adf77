"""Ray Data over all nodes: how long the Collatz sequences of many numbers are, and which is the longest.

    python examples/ray/data.py run

The numbers are cut into blocks, every block is worked on wherever there is room, and aggregates bring them together.
Of the numbers up to 20,000 the longest is that of 17,647, with 278 steps. Needs Ray: `pip install "ray[data]"`.
"""

from metaflow import FlowSpec, Parameter, metaflow_ray, step

BLOCKS = 8


def collatz(batch):
    """For each number how often it is halved, or tripled plus one, until it is 1: a whole batch at a time."""
    import numpy as np
    import ray

    number = batch["id"] + 1
    value, steps = number.copy(), np.zeros_like(number)
    while (unfinished := value > 1).any():
        steps += unfinished
        value = np.where(unfinished, np.where(value % 2 == 0, value // 2, 3 * value + 1), value)
    node = ray.get_runtime_context().get_node_id()
    return {"number": number, "steps": steps, "node": np.full(len(number), node)}


class LongestSequence(FlowSpec):
    numbers = Parameter("numbers", default=20_000, help="how many numbers, from 1 on")

    @step
    def start(self):
        self.next(self.search, num_parallel=2)

    @metaflow_ray
    @step
    def search(self):
        import ray  # here, so that the other steps need no Ray
        from ray.data.aggregate import Max, Mean, Unique

        ray.init()
        ray.data.DataContext.get_current().enable_progress_bars = False
        numbers = ray.data.range(self.numbers, override_num_blocks=BLOCKS)
        sequences = numbers.map_batches(collatz).materialize()
        found = sequences.aggregate(Max("steps"), Mean("steps"), Unique("node"))
        self.steps, self.mean = int(found["max(steps)"]), found["mean(steps)"]
        self.nodes = len(found["unique(node)"])
        longest = sequences.filter(expr=f"steps == {self.steps}").take_all()
        self.longest = min(int(row["number"]) for row in longest)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.merge_artifacts([inputs[0]], include=["longest", "steps", "mean", "nodes"])
        self.next(self.end)

    @step
    def end(self):
        print(f"the longest sequence is that of {self.longest}, with {self.steps} steps; {self.mean:.2f} on average")
        print(f"blocks were worked on by {self.nodes} nodes")


if __name__ == "__main__":
    LongestSequence()

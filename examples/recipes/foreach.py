"""One gang for each learning rate: a gang inside of a foreach. The gangs run at the same time.

python examples/recipes/foreach.py run
"""

from metaflow import FlowSpec, current, gang, step


class Foreach(FlowSpec):
    @step
    def start(self):
        self.rates = [0.1, 0.01]
        self.next(self.begin, foreach="rates")

    @step
    def begin(self):
        self.rate = self.input
        self.next(self.train, num_parallel=2)

    @gang
    @step
    def train(self):
        # Values of one gang do not reach the other.
        self.seen = current.gang.all_gather((self.rate, current.gang.node_index))
        self.next(self.join)

    @step
    def join(self, inputs):
        self.seen = inputs[0].seen
        self.next(self.best)

    @step
    def best(self, inputs):
        self.gangs = sorted(each.seen for each in inputs)
        print("gangs:", self.gangs)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Foreach()

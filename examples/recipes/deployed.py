"""A flow with a gang that runs on Kubernetes: deploy.py, beside this file, gives it to Argo Workflows."""

from metaflow import FlowSpec, Parameter, current, gang, kubernetes, retry, step


class Deployed(FlowSpec):
    rate = Parameter("rate", default=0.1)

    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @retry(times=2)
    @kubernetes(cpu=2, memory=4096)
    @gang
    @step
    def train(self):
        self.seen = current.gang.all_gather((self.rate, current.gang.node_index))
        self.next(self.join)

    @step
    def join(self, inputs):
        self.seen = inputs[0].seen
        self.next(self.end)

    @step
    def end(self):
        print("the nodes have seen", self.seen)


if __name__ == "__main__":
    Deployed()

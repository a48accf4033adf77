"""The sizes of a gang in a configuration file, and a mutator that gives steps their launcher.

python examples/recipes/configured.py run
python examples/recipes/configured.py --config-value sizes '{"nodes": 3, "ranks": 1, "steps": ["train"]}' run
"""

import os

from metaflow import Config, FlowMutator, FlowSpec, current, step, torchrun


class Launch(FlowMutator):
    """Puts @torchrun, with as many ranks as the configuration says, on the steps that it names."""

    def pre_mutate(self, mutable_flow):
        sizes = dict(mutable_flow.configs)["sizes"]
        for name, mutable_step in mutable_flow.steps:
            if name in sizes["steps"]:
                mutable_step.add_decorator(torchrun, deco_kwargs={"nproc_per_node": sizes["ranks"]})


def rank():
    return int(os.environ["RANK"])


@Launch
class Configured(FlowSpec):
    sizes = Config("sizes", default=os.path.join(os.path.dirname(__file__), "sizes.json"))

    @step
    def start(self):
        self.next(self.train, num_parallel=self.sizes.nodes)

    @step
    def train(self):
        self.ranks = current.torch.run(entrypoint=rank)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ranks = inputs[0].ranks
        print("ranks:", self.ranks)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Configured()

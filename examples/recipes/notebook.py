# %% [markdown]
# A gang from a notebook. A line with two percent signs begins a cell: VS Code and PyCharm run the cells of such a
# file, and so does Jupyter with jupytext. The flow, what it imports and NBRunner belong into one cell.

# %%
from metaflow import FlowSpec, NBRunner, Parameter, current, step, torchrun


def train(rate):
    import os

    return f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} at {rate}"


class FromANotebook(FlowSpec):
    rate = Parameter("rate", default=0.1)

    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @torchrun
    @step
    def train(self):
        self.said = current.torch.run(entrypoint=train, entrypoint_args={"rate": self.rate})
        self.next(self.join)

    @step
    def join(self, inputs):
        self.said = inputs[0].said
        self.next(self.end)

    @step
    def end(self):
        pass


run = NBRunner(FromANotebook).nbrun(rate=0.5)

# %%
print("the ranks said:", run["join"].task["said"].data)

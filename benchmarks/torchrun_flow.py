"""The gang's side of torchrun.py: a flow that notes when each node's step begins for Metaflow, and when it ends."""

import json
import os
import time

from metaflow import FlowSpec, Parameter, current, step, torchrun

# After metaflow, which makes the package importable.
from metaflow_extensions.gang.launchers.torchrun.decorator import TorchrunDecorator


def note(moment):
    """Write down now, with where it is."""
    path = os.path.join(os.environ["BENCHMARK_FOLDER"], f"{moment}-{os.getpid()}.json")
    with open(path, "w") as file:
        json.dump({moment: time.time(), "node": int(os.environ.get("MF_PARALLEL_NODE_INDEX", 0))}, file)


def noted(hook, moment, at_end):
    """``hook`` of Metaflow's, with the moment it begins or ends written down."""

    def wrapped(self, *arguments, **named):
        if not at_end:
            note(moment)
        result = hook(self, *arguments, **named)
        if at_end:
            note(moment)
        return result

    return wrapped


TorchrunDecorator.task_pre_step = noted(TorchrunDecorator.task_pre_step, "pre_step", at_end=False)
TorchrunDecorator.task_post_step = noted(TorchrunDecorator.task_post_step, "post_step", at_end=True)


class TorchrunBenchmark(FlowSpec):
    """Two nodes, one call of current.torch.run."""

    nproc = Parameter("nproc", default=1)
    script = Parameter("script")

    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @torchrun
    @step
    def train(self):
        current.torch.run(entrypoint=self.script, nproc_per_node=self.nproc)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    TorchrunBenchmark()

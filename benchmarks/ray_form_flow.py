"""The gang's side of ray_form.py: a flow that notes when each node's step begins, and when the body does."""

import json
import os
import time

from metaflow import FlowSpec, Parameter, metaflow_ray, resources, step

# After metaflow, which makes the package importable.
from metaflow_extensions.gang.launchers.ray.decorator import RayDecorator


def note(moment):
    """Write down now."""
    path = os.path.join(os.environ["BENCHMARK_FOLDER"], f"{moment}-{os.getpid()}.json")
    with open(path, "w") as file:
        json.dump({moment: time.time()}, file)


def noted(hook):
    """Metaflow's ``task_pre_step``, with the moment it begins written down."""

    def wrapped(self, *arguments, **named):
        note("pre_step")
        return hook(self, *arguments, **named)

    return wrapped


RayDecorator.task_pre_step = noted(RayDecorator.task_pre_step)


class RayForm(FlowSpec):
    """A Ray cluster, and nothing done with it."""

    nodes = Parameter("nodes", default=3)

    @step
    def start(self):
        self.next(self.work, num_parallel=self.nodes)

    @resources(cpu=1)
    @metaflow_ray
    @step
    def work(self):
        note("body")
        import ray

        ray.init()
        alive = [node for node in ray.nodes() if node["Alive"]]
        assert len(alive) == self.nodes, alive
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    RayForm()

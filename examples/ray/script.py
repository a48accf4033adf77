"""An ordinary Ray script on the cluster of a step.

    python examples/ray/script.py run --samples 2000000

`current.ray.run` runs pi.py in a process of its own on the head node; its `ray.init()` joins the step's cluster.
Needs Ray: `pip install "ray[default]"`.
"""

import os

from metaflow import FlowSpec, Parameter, current, metaflow_ray, step

# The script lies beside the flow, here and in the package that remote tasks unpack.
SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pi.py")


class RunScript(FlowSpec):
    samples = Parameter("samples", default=1_000_000, help="darts of each task")

    @step
    def start(self):
        self.next(self.throw, num_parallel=2)

    @metaflow_ray
    @step
    def throw(self):
        current.ray.run(SCRIPT, {"samples": self.samples, "tasks": 8})
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    RunScript()

"""``spin`` of a step with a launcher: one sentence says that it cannot, and no traceback."""

from __future__ import annotations

import pytest
from metaflow import metaflow_config
from support.flows import FlowRunner
from support.frameworks.mpi import OPEN_MPI_4, path_with
from support.requirements import require_packages

END_S = 240.0
"""For Ray to start and end among the others, on a machine that is busy: tells an end from a hang."""

LAUNCHERS = ("gang", "torchrun", "deepspeed", "metaflow_ray", "tensorflow", "jax", "mpi")

BEGIN = """
from metaflow import FlowSpec, deepspeed, gang, jax, metaflow_ray, mpi, step, tensorflow, torchrun

class Spun(FlowSpec):
    @step
    def start(self):
        self.next(self.of_{first}, num_parallel=1)
"""

OF_ONE = """
    @{launcher}
    @step
    def of_{launcher}(self):
        self.next(self.join_{launcher})

    @step
    def join_{launcher}(self, inputs):
        self.next(self.before_{launcher})

    @step
    def before_{launcher}(self):
        self.next(self.{following})
"""

END = """
    @step
    def end(self):
        pass

if __name__ == "__main__":
    Spun()
"""


def flow() -> str:
    """A step of one node with each launcher, one after the other."""
    text = BEGIN.format(first=LAUNCHERS[0])
    for launcher, after in zip(LAUNCHERS, (*LAUNCHERS[1:], ""), strict=True):
        following = f"of_{after}, num_parallel=1" if after else "end"
        text += OF_ONE.format(launcher=launcher, following=following)
    return text + END


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(metaflow_config, "SPIN_DISALLOWED_DECORATORS"), reason="this Metaflow has no spin")
def test_every_launcher_says_that_it_cannot_be_spun(flow_run: FlowRunner) -> None:
    require_packages("torch", "deepspeed", "ray", "tensorflow", "jax")
    env = {"PATH": path_with(OPEN_MPI_4)}
    run = flow_run(flow(), env=env).ok(END_S)
    for launcher in LAUNCHERS:
        spun = flow_run(run.file, f"of_{launcher}", command="spin", folder=run.folder, env=env)
        said = spun.fails(END_S)
        assert f"Spinning steps with @{launcher} decorator is not supported." in said, spun.dump()
        assert "Traceback" not in said, spun.dump()

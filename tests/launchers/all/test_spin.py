"""``spin`` of a step with a launcher: a gang of one node, with what the launcher gives, and its own failures."""

from __future__ import annotations

import re

import pytest
from metaflow import metaflow_config
from support.flows import FlowRun, FlowRunner
from support.frameworks.mpi import OPEN_MPI_4, path_with
from support.requirements import require_packages

END_S = 240.0
"""For Ray to start and end among the others, on a machine that is busy: tells an end from a hang."""

BODIES = {
    "gang": "print('spun', current.gang.run(['true']), current.gang.all_gather(self.given))",
    "torchrun": "print('spun', current.torch.run(entrypoint=double, entrypoint_args={'number': self.given}))",
    "deepspeed": "print('spun', current.deepspeed.run(entrypoint=double, entrypoint_args={'number': self.given}))",
    "metaflow_ray": "import ray; ray.init(); print('spun', ray.get(ray.remote(double).remote(self.given)))",
    "tensorflow": "print('spun', current.tensorflow.run(entrypoint=double, entrypoint_args={'number': self.given}))",
    "jax": "print('spun', current.jax.num_processes, current.jax.process_id)",
    "mpi": "print('spun', current.mpi.run(program='true'), len(current.gang.nodes))",
}
"""What each launcher's step does: it prints one line, by what the launcher has put on ``current``."""

SAYS = {
    "gang": r"0 \[21\]",
    "torchrun": r"\[42, 42\]",
    "deepspeed": r"\[42(, 42)*\]",
    "metaflow_ray": "42",
    "tensorflow": r"42|\[42\]",
    "jax": "1 0",
    "mpi": "None 1",
}

ARGUMENTS = {"torchrun": "(nproc_per_node=2)"}

BEGIN = """
from metaflow import FlowSpec, current, deepspeed, gang, jax, metaflow_ray, mpi, step, tensorflow, torchrun

def double(number):
    return 2 * number

class Spun(FlowSpec):
    @step
    def start(self):
        self.given = 21
        self.next(self.of_{first}, num_parallel=2)
"""

OF_ONE = """
    @{launcher}{arguments}
    @step
    def of_{launcher}(self):
        if current.gang.num_nodes == 1:
            print("nodes", current.gang.num_nodes, current.parallel.num_nodes, current.is_parallel)
            {body}
        self.next(self.join_{launcher})

    @step
    def join_{launcher}(self, inputs):
        self.given = 21
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

HAS_SPIN = hasattr(metaflow_config, "SPIN_ALLOWED_DECORATORS")


def flow() -> str:
    """A step with each launcher, one after the other."""
    text = BEGIN.format(first=next(iter(BODIES)))
    for launcher, after in zip(BODIES, [*BODIES, ""][1:], strict=True):
        following = f"of_{after}, num_parallel=1" if after else "end"
        parts = {"body": BODIES[launcher], "arguments": ARGUMENTS.get(launcher, "")}
        text += OF_ONE.format(launcher=launcher, following=following, **parts)
    return text + END


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SPIN, reason="this Metaflow has no spin")
def test_every_launcher_is_spun_as_a_gang_of_one_node(flow_run: FlowRunner) -> None:
    require_packages("torch", "deepspeed", "ray", "tensorflow", "jax")
    env = {"PATH": path_with(OPEN_MPI_4)}
    run = flow_run(flow(), env=env).ok(END_S)
    for launcher in BODIES:
        spun = flow_run(run.file, f"of_{launcher}", command="spin", folder=run.folder, env=env).ok(END_S)
        assert "nodes 1 1 True" in spun.output, spun.dump()
        assert re.search(rf"spun ({SAYS[launcher]})$", spun.output, re.MULTILINE), spun.dump()
        assert "--mode spin card view " in spun.output
        assert "Traceback" not in spun.output and "Ignoring" not in spun.output, spun.dump()


FAILS = """
from metaflow import FlowSpec, current, kubernetes, retry, step, torchrun

def fail(attempt):
    if attempt:
        raise ValueError("a rank's own fault")

class Fails(FlowSpec):
    @step
    def start(self):
        self.again = 0
        self.next(self.work, num_parallel=2)

    @retry(times=1)
    @torchrun
    @step
    def work(self):
        current.torch.run(entrypoint=fail, entrypoint_args={"attempt": self.again})
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Fails()
"""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SPIN, reason="this Metaflow has no spin")
def test_a_failure_of_a_spun_step_is_told_as_in_a_run(flow_run: FlowRunner) -> None:
    require_packages("torch")
    run = flow_run(FAILS).ok(END_S)
    (run.folder / "mine.py").write_text("ARTIFACTS = {'again': 1}\n")
    spun = flow_run(run.file, "work", "--artifacts-module", "mine.py", command="spin", folder=run.folder)
    said = spun.fails(END_S)
    assert "ValueError: a rank's own fault" in said, spun.dump()
    assert "Ignoring Step decorator 'retry'" in said


NEEDS_MORE_NODES = """
from metaflow import FlowSpec, current, step, tensorflow, torchrun

def double(number):
    return 2 * number

class Spun(FlowSpec):
    @step
    def start(self):
        self.next(self.spares, num_parallel=2)

    @torchrun(spares=1, min_nodes=1, preflight="full")
    @step
    def spares(self):
        if current.gang.num_nodes == 1:
            print("spun", current.torch.run(entrypoint=double, entrypoint_args={"number": 21}))
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.before)

    @step
    def before(self):
        self.next(self.evaluated, num_parallel=2)

    @tensorflow(evaluator=True, chief=True)
    @step
    def evaluated(self):
        print("spun", current.gang.num_nodes, current.tensorflow.config["task"])
        self.next(self.meets)

    @step
    def meets(self, inputs):
        self.next(self.between)

    @step
    def between(self):
        self.next(self.served, num_parallel=2)

    @tensorflow(ps=1)
    @step
    def served(self):
        self.next(self.last)

    @step
    def last(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Spun()
"""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SPIN, reason="this Metaflow has no spin")
def test_spin_of_a_step_that_needs_more_nodes_does_without_them_or_says_that_it_cannot(flow_run: FlowRunner) -> None:
    require_packages("torch", "tensorflow")
    run = flow_run(NEEDS_MORE_NODES).ok(END_S)

    def spun(name: str) -> FlowRun:
        return flow_run(run.file, name, command="spin", folder=run.folder)

    assert "spun [42]" in spun("spares").ok(END_S).output
    assert "spun 1 {'type': 'chief', 'index': 0}" in spun("evaluated").ok(END_S).output
    said = spun("served").fails(END_S)
    assert "@tensorflow(ps=1): spin runs a step on one node, and parameter servers need nodes of their own." in said

"""@deepspeed on this machine, with the real DeepSpeed: several gangs, results, and a plain step without a gang."""

from __future__ import annotations

import pytest
from support.flows import FlowRunner
from support.frameworks.mpi import MPICH, OPEN_MPI_4, path_with
from support.requirements import require_packages, require_tool

END_S = 240.0
"""For DeepSpeed to be imported many times over, on a machine that is busy: tells an end from a hang."""

RANK = """
import os
import deepspeed
import torch.distributed as dist

def work(label, fail=False):
    deepspeed.init_distributed(dist_backend="gloo")
    rank = dist.get_rank()
    os.makedirs("out-" + label, exist_ok=True)
    with open(f"out-{label}/rank-{rank}.txt", "w") as file:
        file.write(label)
    dist.barrier()
    if fail and rank == 1:
        raise LookupError("on purpose")
    return label, rank, dist.get_world_size(), "RANK" in os.environ
"""

FOREACH = """
import glob
from metaflow import FlowSpec, current, deepspeed, resources, step

import ranks

class Foreach(FlowSpec):
    @step
    def start(self):
        self.labels = ["a", "b"]
        self.next(self.each, foreach="labels")

    @step
    def each(self):
        self.label = self.input
        self.next(self.work, num_parallel=2)

    @resources(cpu=1)
    @deepspeed
    @step
    def work(self):
        self.returned = current.deepspeed.run(entrypoint=ranks.work, entrypoint_args=[self.label])
        self.location = current.deepspeed.run(
            deepspeed_args=["--quiet"], entrypoint="script.py", entrypoint_args=[self.label],
            push_results_dir_to_cloud=True, local_output_dir="out-" + self.label, cloud_output_dir="out",
        )
        self.next(self.join)

    @step
    def join(self, inputs):
        self.returned = [node.returned for node in inputs]
        self.locations = [node.location for node in inputs]
        self.next(self.all)

    @step
    def all(self, inputs):
        self.returned = {each.returned[0][0][0]: each.returned for each in inputs}
        self.locations = {tuple(each.locations) for each in inputs}
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Foreach()
"""

SINGLE = """
from metaflow import FlowSpec, step

import ranks

class Single(FlowSpec):
    @step
    def start(self):
        from metaflow.plugins.deepspeed_libs.executor import DeepspeedExecutor
        executor = DeepspeedExecutor.for_single_node(self, use_gpu=False, n_slots=2)
        self.returned = executor.run(entrypoint=ranks.work, entrypoint_args=["single"])
        try:
            executor.run({"quiet": True}, ranks.work, {"label": "single", "fail": True})
        except LookupError as error:
            self.raised = str(error)
        self.location = executor.run(
            entrypoint="script.py", entrypoint_args=["single"],
            push_results_dir_to_cloud=True, local_output_dir="out-single",
        )
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Single()
"""

LAUNCHER = """
import os
from metaflow import FlowSpec, current, deepspeed, resources, step

import ranks

class Launcher(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @resources(cpu=1)
    @deepspeed(transport="channel")
    @step
    def work(self):
        args = {"launcher": os.environ["LAUNCHER"]}
        self.returned = current.deepspeed.run(args, ranks.work, ["mpi"])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.returned = [node.returned for node in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Launcher()
"""

SCRIPT = """
import sys
import ranks

if __name__ == "__main__":
    assert sys.argv[1].startswith("--local_rank="), sys.argv
    ranks.work(sys.argv[2])
"""


@pytest.fixture(autouse=True)
def deepspeed_is_here() -> None:
    """What all of these need."""
    require_packages("deepspeed")
    require_tool("g++", "g++")


FILES = {"ranks.py": RANK, "script.py": SCRIPT}


@pytest.mark.big
def test_gangs_of_a_foreach_do_not_meet(flow_run: FlowRunner) -> None:
    run = flow_run(FOREACH, files=FILES).ok(END_S)
    returned = run.artifact("all", "returned")
    for label in ("a", "b"):
        control, other = sorted(returned[label], key=len, reverse=True)
        assert control == [(label, 0, 2, True), (label, 1, 2, True)]
        assert other == [(label, 1, 2, True)]
    locations = run.artifact("all", "locations")
    assert len(locations) == 2 and all(len(set(pair)) == 1 for pair in locations)
    assert all("mf.deepspeed/Foreach/" in pair[0] for pair in locations)


@pytest.mark.big
@pytest.mark.parametrize(("launcher", "kind"), [("openmpi", OPEN_MPI_4), ("mpich", MPICH)])
def test_an_mpi_starts_the_ranks(flow_run: FlowRunner, launcher: str, kind: str) -> None:
    run = flow_run(LAUNCHER, files=FILES, env={"PATH": path_with(kind), "LAUNCHER": launcher}).ok(END_S)
    returned = sorted(run.artifact("join", "returned"), key=len)
    assert returned == [[("mpi", 1, 2, True)], [("mpi", 0, 2, True), ("mpi", 1, 2, True)]]


@pytest.mark.big
def test_one_machine_without_a_gang(flow_run: FlowRunner) -> None:
    run = flow_run(SINGLE, files=FILES).ok(END_S)
    assert run.artifact("start", "returned") == [("single", 0, 2, True), ("single", 1, 2, True)]
    assert run.artifact("start", "raised") == "on purpose"
    location = run.artifact("start", "location")
    assert location.endswith("/start/out-single") and "/mf.deepspeed/Single/" in location
    assert run.left(5) == []

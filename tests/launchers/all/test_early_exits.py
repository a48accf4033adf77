"""A rank that leaves while others need it is told by its own number, by what it did, and on every node the same."""

from __future__ import annotations

import re

import pytest
from support.flows import FlowRun, FlowRunner
from support.frameworks.mpi import MPICH, OPEN_MPI_4, OPEN_MPI_5, path_with

pytestmark = pytest.mark.slow

END_S = 120.0

FLOW = """
import os
from metaflow import FlowSpec, Parameter, current, step, torchrun

def leave_without_returning(ranks):
    if os.environ["RANK"] in ranks:
        os._exit(0)
    return 1

class Early(FlowSpec):
    how = Parameter("how")

    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @torchrun(nproc_per_node=2)
    @step
    def train(self):
        if self.how.startswith("function"):
            current.torch.run(entrypoint=leave_without_returning, entrypoint_args={"ranks": self.how.split()[1:]})
        else:
            current.torch.run(entrypoint="train.py", entrypoint_args=[self.how])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Early()
"""

TRAIN = """
import os, sys
import torch.distributed as dist

how = sys.argv[1]
dist.init_process_group("gloo")
rank = dist.get_rank()
dist.barrier()
if rank == 3:
    if how == "exit":
        sys.exit(0)
    if how == "exit1":
        print("looked for shard 3 in vain", file=sys.stderr)
        sys.exit(1)
    if how == "text":
        sys.exit("no data for this rank")
    if how == "_exit":
        os._exit(0)
    if how == "_exit5":
        os._exit(5)
    if how == "abort":
        os.abort()
    if how == "raise":
        raise ValueError("no data")
if how == "end" and rank == 3:
    pass
else:
    dist.barrier()
"""


def fails(flow_run: FlowRunner, how: str) -> FlowRun:
    run = flow_run(FLOW, "--how", how, files={"train.py": TRAIN})
    run.fails(END_S)
    return run


def errors(run: FlowRun) -> tuple[str, str]:
    """What each node's task raises: the end of its stderr, after what its ranks wrote."""
    return tuple(run.node_log("train", node, "stderr").rpartition("> failed:\n")[2] for node in (0, 1))  # type: ignore


@pytest.mark.parametrize(
    ("how", "ended", "words"),
    [
        ("exit1", "called sys.exit(1)", "looked for shard 3 in vain"),
        ("text", "called sys.exit('no data for this rank')", "SystemExit: no data for this rank"),
        ("_exit5", "exited with code 5 without an exception, as by os._exit() or the exit() of a C library", ""),
        ("abort", "was aborted (SIGABRT), as C++ code and os.abort() do when they give up", ""),
        # Threads of the collective that the exception leaves behind may abort the interpreter on its way out.
        ("raise", ("exited with code 1", "raised an exception, and was "), "no data"),
    ],
)
def test_the_rank_that_ended_itself_is_named_on_every_node(
    flow_run: FlowRunner, how: str, ended: str | tuple[str, str], words: str
) -> None:
    run = fails(flow_run, how)
    other, own = errors(run)
    head, _, told = other.partition("): rank 3 ")
    assert "The first failure was on node 1 (" in head and told.startswith(ended), run.dump()
    if how == "raise":
        assert own.endswith("ValueError: no data\n\n"), "its own exception"
    else:
        assert f"rank 3 on node 1, running train.py, {ended}" in own, run.dump()
    for text in (other, own):
        assert words in text and "Connection closed by peer" not in text, run.dump()


@pytest.mark.parametrize("how", ["exit", "_exit", "end"])
def test_a_rank_that_left_with_code_0_is_named_beside_the_one_that_complains(flow_run: FlowRunner, how: str) -> None:
    run = fails(flow_run, how)
    for node in (
        0,
        1,
    ):  # in the failure report, or beside the own exception of one that complains, in the log
        text = run.node_log("train", node, "stderr")
        when = r"(, [0-9.]+ s before| at that moment)"
        assert re.search(f"Rank 3 on node 1 had ended with code 0{when}, while others still needed it", text), (
            run.dump()
        )
    # Which of the other ranks is the first to notice is chance.
    assert re.search(r"first failure was on node \d \(.*\): rank [012]|rank [012] on node \d", run.output), run.dump()


def test_a_rank_that_left_without_a_return_is_named(flow_run: FlowRunner) -> None:
    run = fails(flow_run, "function 3")
    sentence = "returned in 1 of the 2 ranks on node 1: rank 3 ended with code 0 without returning, as by os._exit(0)."
    for text in errors(run):
        assert sentence in text, run.dump()


@pytest.mark.big
def test_ranks_that_all_left_without_a_return_are_named(flow_run: FlowRunner) -> None:
    run = fails(flow_run, "function 0 1 2 3")
    sentences = (
        f"in 0 of the 2 ranks on node {node}: ranks {2 * node}, {2 * node + 1} ended with code 0 without returning"
        for node in (0, 1)
    )
    assert any(all(sentence in text for text in errors(run)) for sentence in sentences), run.dump()


MPI_FLOW = """
from metaflow import FlowSpec, current, mpi, step

class Leaves(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @mpi
    @step
    def work(self):
        current.mpi.run(args=["-n", "4"], program="python -m leaves")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Leaves()
"""

LEAVES = """
import os
from mpi4py import MPI
MPI.COMM_WORLD.Barrier()
if MPI.COMM_WORLD.rank == 3:
    print("rank 3 leaves", flush=True)
    os._exit(0)
MPI.COMM_WORLD.Barrier()
"""


@pytest.mark.parametrize("mpi", [OPEN_MPI_4, pytest.param(OPEN_MPI_5, marks=pytest.mark.big), MPICH])
def test_a_rank_of_mpirun_that_left_with_code_0_is_named(flow_run: FlowRunner, mpi: str) -> None:
    run = flow_run(MPI_FLOW, files={"leaves.py": LEAVES}, env={"PATH": path_with(mpi)})
    run.fails(END_S)
    for node, who in ((0, "rank 3, running python -m leaves,"), (1, "rank 3")):
        text = run.node_log("work", node, "stderr")
        if mpi == MPICH:  # mpirun itself names none
            assert "Rank 3 on node 0 had ended with code 0" in text and "while others still needed it" in text
        else:
            told = f"{who} ended with code 0 while others still needed it, as by os._exit(0) or before MPI_Finalize"
            assert told in text, run.dump()

"""What befalls nodes, on every backend: how the run ends, what its user reads, and a retry that succeeds."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest

from .container import Container
from .flows import AT_WORK, RETRIED, SAVED, fails
from .imds import InstanceMetadata
from .places import Places, everywhere
from .places import place as place
from .workplace import RUN_S, result
from .workplace import bare_image as bare_image

TOLD_S = 30.0
"""For a failure to be told once all nodes are there: 2 s are enough on a machine not busy."""


def at_work(workplace: Any, run: Any) -> list[Container]:
    """The containers of both nodes, once their bodies run."""
    return [workplace.node(index, AT_WORK, run) for index in range(2)]


def logs_of_first_attempt(workplace: Any, run: Any, *nodes: int) -> list[str]:
    """What the user reads of nodes that failed, once the second attempt has succeeded among its own nodes."""
    run.ok(RUN_S)
    assert result(run) == RETRIED, run.dump()
    return [workplace.task_logs(run, index) for index in nodes]


@pytest.mark.slow
@everywhere("batch")
def test_a_killed_child_is_named_in_controls_log_before_the_backend_ends_it(place: Places) -> None:
    workplace = place(2)
    run = workplace.start(fails())
    _, child = at_work(workplace, run)
    child.kill()
    (said,) = logs_of_first_attempt(workplace, run, 0)
    assert f"[gang] The first failure was on node 1 ({child.hostname})" in said, said


@everywhere()
def test_a_killed_main_node_is_named_in_the_childs_own_log(place: Places) -> None:
    workplace = place(2)
    run = workplace.start(fails())
    control, _ = at_work(workplace, run)
    control.kill()
    (said,) = logs_of_first_attempt(workplace, run, 1)
    assert "[gang] The first failure was on node 0" in said, said


@everywhere()
def test_a_lost_machine_is_noticed_long_before_the_backend_does(place: Places) -> None:
    workplace = place(3)  # one to replace it
    run = workplace.start(fails())
    _, child = at_work(workplace, run)
    workplace.lose(child)
    (said,) = logs_of_first_attempt(workplace, run, 0)
    assert f"[gang] The first failure was on node 1 ({child.hostname})" in said, said


@everywhere()
def test_a_node_that_never_comes_is_named(place: Places) -> None:
    workplace = place(2)
    workplace.hold_back(1)
    run = workplace.start(fails(first_patience=2))
    (said,) = logs_of_first_attempt(workplace, run, 0)
    assert "[gang] The first failure was on node 1" in said and "1 of 2 nodes had joined" in said, said


LACKS = "This step needs an MPI, and there is no mpirun on the PATH"

LACKING = """
import os, sys
from metaflow import BACKEND, FlowSpec, current, mpi, step

first = "0" == os.environ.get("MF_WORKER_REPLICA_INDEX") or "1" == os.environ.get("AWS_BATCH_JOB_NODE_INDEX")
first = first or ("SLURM_JOB_ID" in os.environ and "1" == os.environ.get("MF_PARALLEL_NODE_INDEX"))
if "ubf_task" in sys.argv and first:
    os.environ["PATH"] = "/nowhere"  # its image lacks what the others have
if os.environ.get("MF_ATTEMPT"):
    print("LOADED", flush=True)

class Lacking(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=3)

    @BACKEND
    @mpi(all_nodes_started_timeout=600)
    @step
    def work(self):
        current.mpi.run(program="true")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Lacking()
"""


@everywhere()
def test_a_node_whose_image_lacks_mpirun_is_told_by_all(place: Places) -> None:
    workplace = place(3)
    run = workplace.start(LACKING)
    for index in range(3):
        workplace.node(index, "LOADED", run)
    since = time.monotonic()
    for index in range(3):
        workplace.node(index, LACKS, run, timeout=TOLD_S)
    print(f"all nodes had told it after {time.monotonic() - since:.1f} s")
    run.fails(RUN_S)
    for index in range(3):
        said = workplace.task_logs(run, index)
        assert LACKS in said, said
        assert index == 1 or "The first failure was on node 1" in said, said


@pytest.mark.slow
@everywhere("kubernetes", but="slurm")
def test_a_spot_instances_notice_lets_all_nodes_save(place: Places) -> None:
    workplace = place(3)
    with contextlib.ExitStack() as stack:
        instances = {
            index: stack.enter_context(contextlib.closing(InstanceMetadata(workplace.hosts[index])))
            for index in workplace.machines
        }
        run = workplace.start(fails())
        _, child = at_work(workplace, run)
        ends = instances[child.host.index].take_away()
        for index in range(2):
            workplace.node(index, SAVED, run)
        instances[child.host.index].replace()
        for said in logs_of_first_attempt(workplace, run, 0, 1):
            assert said.count(SAVED) == 1, said
            assert child.hostname in said and f"is to lose its machine at {ends}: a preemption" in said, said

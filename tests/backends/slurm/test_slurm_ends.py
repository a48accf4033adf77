"""Whatever befalls a gang on Slurm ends all of it, and the other way round; a retry goes on from what was saved."""

from __future__ import annotations

import time
from collections.abc import Callable

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.processes import descendants, send_signal

from ..workplace import RUN_S, result
from .ends import AtWork, at_work
from .flows import SAVED
from .place import SlurmPlace
from .place import slurm as slurm

pytestmark = pytest.mark.slow

Slurms = Callable[..., SlurmPlace]

WITHIN_S = 60.0
"""For an end on a machine that other tests use, too. Slurm counts a job with a lost node as over when it has noticed
the loss: 15 to 30 s with the SlurmdTimeout of these tests.
"""

KILL_WAIT_S = 9.0
"""A second less than Slurm waits before it kills what a SIGTERM has not ended: no process may need that."""

LOST_HOST_S = 4
"""lost_host_timeout, of a gang one of whose hosts is gone without a word."""


def kill_rank(gang: AtWork) -> str:
    below = descendants(gang.nodes[1].parent().pid)
    (rank,) = (one for one in below if one.command[1:2] == ("-c",) and "/go" in one.command[-1])
    assert send_signal(rank, 9)
    return "was killed by SIGKILL"


def kill_task(gang: AtWork) -> str:
    assert send_signal(gang.nodes[1].task(), 9)
    return "The first failure was on node 1"


def kill_main_task(gang: AtWork) -> str:
    assert send_signal(gang.nodes[0].task(), 9)
    return "Node 0's task is dead"


def lose_host(gang: AtWork) -> str:
    gang.place.lose(gang.nodes[2])
    return "The first failure was on node 2"


def lose_host_without_a_word(gang: AtWork) -> str:
    gang.place.hosts.cut(gang.nodes[2].host.index)
    return lose_host(gang)


def lose_main_host(gang: AtWork) -> str:
    gang.place.lose(gang.nodes[0])
    return "The first failure was on node 0"


@pytest.mark.parametrize(
    "befall", [kill_rank, kill_task, kill_main_task, lose_host, lose_host_without_a_word, lose_main_host]
)
def test_the_next_attempt_goes_on_from_the_checkpoint(slurm: Slurms, befall: Callable[[AtWork], str]) -> None:
    place = slurm(4)
    place.env["METAFLOW_GANG_LOST_HOST_TIMEOUT"] = f"{LOST_HOST_S}"
    gang = at_work(place, retries=1)
    since = time.monotonic()
    said = befall(gang)
    gang.run.wait_for("Slurm job failed", WITHIN_S)
    told_s = time.monotonic() - since
    print(f"{befall.__name__}: the run had told it after {told_s:.1f} s")
    # Slurm's own daemons on the other nodes wait for that of the job's first one.
    gang.wait_over(since, befall.__name__, WITHIN_S, WITHIN_S if befall is lose_main_host else told_s + KILL_WAIT_S)
    gang.run.ok(RUN_S)
    assert result(gang.run) == ["a checkpoint"] * 3, gang.run.dump()
    assert said in gang.run.output, gang.run.dump()
    gang.place.wait_gone(since, f"{befall.__name__}, with the second attempt")


def test_scancel_lets_all_nodes_save_and_the_next_attempt_goes_on(slurm: Slurms) -> None:
    """As where a pod is deleted or a job of AWS Batch is terminated: what ends for good is the run."""
    gang = at_work(slurm(3), retries=1)
    since = time.monotonic()
    gang.place.slurm.run("scancel", gang.job)
    assert gang.wait_over(since, "scancel", WITHIN_S) == "CANCELLED"
    gang.run.ok(RUN_S)
    assert f"Slurm job {gang.job} was cancelled" in gang.run.output, gang.run.dump()
    assert result(gang.run) == ["attempt 0"] * 3, gang.run.dump()
    assert all(node.output.count(SAVED) == 1 for node in gang.nodes), str(gang.place)
    gang.place.wait_gone(since, "scancel")


def test_scancel_without_retries_is_told_as_the_steps_failure(slurm: Slurms) -> None:
    gang = at_work(slurm(3))
    gang.place.slurm.run("scancel", gang.job)
    gang.run.fails(RUN_S)
    assert f"Slurm job {gang.job} was cancelled" in gang.run.output, gang.run.dump()
    assert "Step failure" in gang.run.output and "Internal error" not in gang.run.output, gang.run.dump()


def test_ctrl_c_cancels_the_job(slurm: Slurms) -> None:
    gang = at_work(slurm(3))
    since = time.monotonic()
    gang.run.interrupt()
    gang.run.wait(RUN_S)
    print(f"Ctrl-C: the run had ended after {time.monotonic() - since:.1f} s")
    assert gang.wait_over(since, "Ctrl-C", WITHIN_S) == "CANCELLED"
    assert f"Slurm job {gang.job} with it" in gang.run.output, gang.run.dump()
    gang.place.wait_gone(since, "Ctrl-C")


def test_sigkill_of_the_run_cancels_the_job(slurm: Slurms) -> None:
    gang = at_work(slurm(3))
    since = time.monotonic()
    gang.run.kill()
    gang.run.wait(RUN_S)
    assert gang.wait_over(since, "SIGKILL of the run", WITHIN_S) == "CANCELLED"
    gang.place.wait_gone(since, "SIGKILL of the run")

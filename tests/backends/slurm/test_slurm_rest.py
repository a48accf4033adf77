"""Slurm through slurmrestd: a gang and its failure, a cancelled one, an array, and what it cannot do."""

from __future__ import annotations

import time
from collections.abc import Callable

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.requirements import require_tool

from ..workplace import RUN_S, result
from .ends import at_work
from .flows import fans_out, works
from .place import SlurmPlace
from .place import slurm as slurm
from .test_slurm_ends import WITHIN_S, kill_rank

pytestmark = pytest.mark.slow

Slurms = Callable[..., SlurmPlace]


def with_rest(place: SlurmPlace) -> SlurmPlace:
    """The place, whose user asks slurmrestd, and has none of Slurm's commands."""
    require_tool("slurmrestd", "slurmrestd")
    socket = place.slurm.folder / "rest"
    place.slurm.start_rest(f"unix:{socket}", "-a", "rest_auth/local", SLURMRESTD_SECURITY="disable_user_check")
    commands = place.folder / "without"
    commands.mkdir()
    for name in ("sbatch", "squeue", "scontrol", "scancel", "sacct"):
        (commands / name).write_text(f"#!/bin/sh\necho {name} >>{place.folder}/commands\nexit 1\n")
        (commands / name).chmod(0o755)
    place.env.update(METAFLOW_SLURM_LOGIN=f"unix://{socket}", PATH=f"{commands}:{place.env['PATH']}")
    return place


def test_a_gang_goes_on_after_a_failure(slurm: Slurms) -> None:
    gang = at_work(with_rest(slurm(3)), retries=1)
    assert gang.place.slurm.job(gang.job)["NumNodes"] == "3"
    since = time.monotonic()
    said = kill_rank(gang)
    gang.wait_over(since, "a rank is killed", WITHIN_S)
    gang.run.ok(RUN_S)
    assert result(gang.run) == ["a checkpoint"] * 3, gang.run.dump()
    assert said in gang.run.output and f"Slurm job {gang.job} runs on gang[1-3]" in gang.run.output, gang.run.dump()
    gang.place.wait_gone(since, "with the second attempt")
    assert not (gang.place.folder / "commands").exists()


def test_sigkill_of_the_run_cancels_the_job(slurm: Slurms) -> None:
    gang = at_work(with_rest(slurm(3)))
    since = time.monotonic()
    gang.run.kill()
    gang.run.wait(RUN_S)
    assert gang.wait_over(since, "SIGKILL of the run", WITHIN_S) == "CANCELLED"
    gang.place.wait_gone(since, "SIGKILL of the run")


def test_scancel_is_told(slurm: Slurms) -> None:
    gang = at_work(with_rest(slurm(3)))
    since = time.monotonic()
    gang.place.slurm.run("scancel", gang.job)
    assert gang.wait_over(since, "scancel", WITHIN_S) == "CANCELLED"
    gang.run.fails(RUN_S)
    assert f"Slurm job {gang.job} was cancelled" in gang.run.output, gang.run.dump()
    gang.place.wait_gone(since, "scancel")


def test_the_tasks_of_a_foreach_are_an_array(slurm: Slurms) -> None:
    place = with_rest(slurm(2))
    run = place.run(fans_out(place.folder, 4, retries=1, killed=(1,)))
    run.ok(RUN_S)
    assert [one[:2] for one in result(run)] == [[0, 0], [1, 1], [2, 0], [3, 0]], run.dump()
    assert "_1] TASK" in run.output, run.dump()
    place.wait_gone(time.monotonic(), "after an array")


def test_what_slurmrestd_cannot_be_told_is_refused(slurm: Slurms) -> None:
    place = with_rest(slurm(2))
    for option, said in (
        ('sbatch="--nice=5"', "--nice of @slurm(sbatch=...) cannot be passed to the slurmrestd at unix://"),
        ('partition="nope"', "slurmrestd: Invalid partition name specified"),
    ):
        run = place.run(works(place.folder, nodes=2, options=option, retries=1))
        run.fails(RUN_S)
        assert run.output.count(said) == 1 and "Traceback" not in run.output, run.dump()
    assert not place.slurm.jobs(), place.slurm.logs()

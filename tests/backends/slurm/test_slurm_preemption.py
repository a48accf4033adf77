"""A job that Slurm preempts for another: all nodes save, and the next attempt goes on from there."""

from __future__ import annotations

import time
from collections.abc import Callable

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.slurm.cluster import HIGH

from ..workplace import RUN_S, result
from .flows import AT_WORK, SAVED, works
from .place import SlurmPlace
from .place import slurm as slurm

pytestmark = pytest.mark.slow

Slurms = Callable[..., SlurmPlace]


def test_a_preempted_job_saves_on_all_nodes_and_goes_on(slurm: Slurms) -> None:
    place = slurm(3)
    run = place.run(works(place.folder, retries=1))
    for index in range(3):
        place.node(index, AT_WORK, run)
    since = time.monotonic()
    other = place.slurm.run(
        "sbatch", "--parsable", f"--partition={HIGH}", "--nodes=3", "--exclusive", "--wrap=sleep 1", timeout=RUN_S
    )
    for index in range(3):
        place.node(index, SAVED, run)
    place.slurm.wait_job(other.strip(), "COMPLETED", timeout=RUN_S)
    print(f"the job that preempted it was over after {time.monotonic() - since:.1f} s")
    run.ok(RUN_S)
    assert result(run) == ["attempt 0"] * 3, run.dump()
    assert "PREEMPTED" in run.output, run.dump()
    for index in range(3):
        said = place.task_logs(run, index)
        assert said.count(SAVED) == 1 and "a preemption" in said, said
    place.wait_gone(since, "all of it, with the second attempt")

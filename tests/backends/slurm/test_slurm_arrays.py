"""A foreach as arrays of jobs: fewer submissions than tasks, and each task with what a job has for itself."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.remote import RemoteTask

from ..workplace import RUN_S, result
from .flows import fans_out
from .place import SlurmPlace
from .place import slurm as slurm

pytestmark = pytest.mark.slow

Slurms = Callable[..., SlurmPlace]

TASKS = 12

_METADATA = "import json, sys, metaflow; print(json.dumps(metaflow.Task(sys.argv[1]).metadata_dict['slurm-job-id']))"


def submissions(place: SlurmPlace) -> int:
    """How many jobs and arrays Slurm has got."""
    return len(set(place.slurm.run("squeue", "--noheader", "--states=all", "--format=%F").split()))


def job_of(run: RemoteTask, task: int) -> str:
    """The number of the job, or of the array's element, that a task has in its first attempt, once it runs."""
    return run.wait_for(re.compile(rf"\[(\d+(?:_\d+)?)\] TASK {task} of attempt 0 runs"), RUN_S).group(1)


def test_the_tasks_of_a_foreach_are_few_submissions(slurm: Slurms) -> None:
    """One of them is killed, and tried again in a submission of its own."""
    place = slurm(4)
    run = place.run(fans_out(place.folder, TASKS, retries=1, killed=(3,)))
    assert "_" in job_of(run, 3), run.dump()
    run.ok(RUN_S)
    found = result(run)
    assert [one[:2] for one in found] == [[task, int(task == 3)] for task in range(TASKS)], run.dump()
    print(f"{TASKS} tasks and a retry: {submissions(place)} submissions")
    assert submissions(place) < TASKS / 2, place.slurm.logs()
    jobs = set()
    for task, _, path in found:
        jobs.add(job_of(run, task))
        log = place.logs(run, path.split("/", 2)[2], attempt=int(task == 3))
        assert f"TASK {task} of" in log and log.count("TASK") == 1, log
    assert len(jobs) == TASKS, jobs
    read = [sys.executable, "-c", _METADATA, found[5][2]]
    stored = place.hosts[0].run(read, env=place.env, cwd=place.folder).stdout
    assert stored.strip() == f'"{job_of(run, 5)}"', stored
    place.wait_gone(time.monotonic(), "after a foreach")

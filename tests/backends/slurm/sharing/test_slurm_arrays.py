"""A foreach as arrays of jobs: fewer submissions than tasks, and each task with what a job has for itself."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.processes import Process, send_signal
from support.remote import RemoteTask

from ...workplace import RUN_S, result
from ..flows import fans_out
from ..place import SlurmPlace
from ..place import slurm as slurm

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
    assert len({job_of(run, task) for task in range(TASKS)}) == TASKS, run.dump()
    for task, attempt, path in (found[0], found[3], found[-1]):
        log = place.logs(run, path.split("/", 2)[2], attempt=attempt)
        assert f"TASK {task} of" in log and log.count("TASK") == 1, log
    read = [sys.executable, "-c", _METADATA, found[5][2]]
    stored = place.hosts[0].run(read, env=place.env, cwd=place.folder).stdout
    assert stored.strip() == f'"{job_of(run, 5)}"', stored
    place.wait_gone(time.monotonic(), "after a foreach")


def test_scancel_of_an_element_is_told_of_its_task(slurm: Slurms) -> None:
    """One runs, and one waits. The run ends, and with it the elements of all others."""
    place = slurm(1)
    run = place.run(fans_out(place.folder, 4, held=range(4)))
    run.wait_for("is pending (Resources", RUN_S)
    running, waiting = (place.slurm.elements(state)[0] for state in ("RUNNING", "PENDING"))
    since = time.monotonic()
    place.slurm.run("scancel", running, waiting)
    run.fails(RUN_S)
    for job in (running, waiting):
        assert f"Slurm job {job} was cancelled" in run.output, run.dump()
    assert submissions(place) == 1, place.slurm.logs()
    place.wait_gone(since, "scancel of two elements")


def serves(place: SlurmPlace, process: Process) -> bool:
    """Whether others of the run connect to this process: it listens at a socket of ours, whose name has no file."""
    lines = [line.split() for line in place.hosts[0].run(["cat", "/proc/net/unix"]).stdout.splitlines()]
    found = [words[6] for words in lines if words[3] == "00010000" and words[-1].startswith("@metaflow-slurm")]
    with contextlib.suppress(OSError):
        open_files = [os.readlink(one) for one in Path(f"/proc/{process.pid}/fd").iterdir()]
        return any(f"socket:[{number}]" in open_files for number in found)
    return False


def test_another_process_takes_the_place_of_that_which_serves(slurm: Slurms) -> None:
    """Its own element ends, and no other."""
    place = slurm(3)
    run = place.run(fans_out(place.folder, 5, retries=1, held=range(5)))
    for task in range(5):
        job_of(run, task)
    (serving,) = [one for one in place.hosts[0].processes() if serves(place, one)]
    assert send_signal(serving, 9)
    run.wait_for(re.compile(r"TASK \d of attempt 1 runs"), RUN_S)
    assert len(place.slurm.elements("CANCELLED")) == 1, place.slurm.logs()
    assert len(place.slurm.elements("RUNNING")) == 5, place.slurm.logs()
    (place.folder / "go").touch()
    run.ok(RUN_S)
    assert [one[0] for one in result(run)] == list(range(5))
    assert sum(one[1] for one in result(run)) == 1, run.dump()
    place.wait_gone(time.monotonic(), "after the loss of the process that serves")


def test_where_slurm_takes_no_array_each_task_is_a_job(slurm: Slurms) -> None:
    place = slurm(2, settings="MaxArraySize=2\n")
    run = place.run(fans_out(place.folder, 4))
    run.ok(RUN_S)
    assert run.output.count("Slurm takes no array (sbatch: ") == 1, run.dump()
    assert submissions(place) == 4 and "_" not in job_of(run, 2), place.slurm.logs()
    place.wait_gone(time.monotonic(), "after a foreach without arrays")

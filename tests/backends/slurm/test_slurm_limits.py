"""Jobs that Slurm ends at a limit of theirs: the time limit, told before it or not, and memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest

from ..workplace import RUN_S, result
from .ends import at_work
from .flows import SAVED
from .place import SlurmPlace
from .place import slurm as slurm

pytestmark = pytest.mark.slow

Slurms = Callable[..., SlurmPlace]

LIMIT_S = 60
"""The least that Slurm has."""

WITHIN_S = LIMIT_S + 60.0
"""Slurm looks at time limits every 30 s."""


def test_all_nodes_save_before_the_time_limit_and_the_next_attempt_goes_on(slurm: Slurms) -> None:
    gang = at_work(slurm(3), options=f"time=1, signal={LIMIT_S - 10}", retries=1)
    since = time.monotonic()
    gang.wait_over(since, "notice of the time limit", WITHIN_S)
    gang.run.ok(RUN_S)
    assert result(gang.run) == ["attempt 0"] * 3, gang.run.dump()
    assert "Slurm's time limit" in gang.run.output, gang.run.dump()
    assert all(node.output.count(SAVED) == 1 for node in gang.nodes), str(gang.place)
    gang.place.wait_gone(since, "time limit, with the second attempt")


def test_a_time_limit_without_a_notice_is_told_as_one(slurm: Slurms) -> None:
    gang = at_work(slurm(3), options="time=1, signal=0")
    since = time.monotonic()
    assert gang.wait_over(since, "TIMEOUT, from the job's beginning", WITHIN_S) == "TIMEOUT"
    gang.run.fails(RUN_S)
    assert f"Slurm job {gang.job} ended as TIMEOUT" in gang.run.output, gang.run.dump()
    gang.place.wait_gone(since, "TIMEOUT")


EATS = """
from metaflow import FlowSpec, current, retry, slurm, step

def eats():
    print("EATS", flush=True)
    return len(b"1" * 600_000_000)

class Eats(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @slurm(memory=200)
    @step
    def start(self):
        if not current.retry_count:
            eats()
        self.parts = [0, 1, 2]
        self.next(self.work, foreach="parts")

    @slurm(memory=200)
    @step
    def work(self):
        if self.input == 1:
            eats()
        print(f"PART {self.input} IS DONE", flush=True)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Eats()
"""


def test_a_task_that_needs_more_memory_than_it_asked_for_is_told_so(slurm: Slurms) -> None:
    """A job, whose second attempt is well, and an element of an array, whose step fails with it."""
    place = slurm(1, cgroups=True)
    run = place.run(EATS)
    run.wait_for("EATS", RUN_S)
    since = time.monotonic()
    run.wait_for("ended as OUT_OF_MEMORY", RUN_S)
    print(f"OUT_OF_MEMORY: told after {time.monotonic() - since:.1f} s")
    run.fails(RUN_S)
    told = set(re.findall(r"Slurm job (\d+(?:_\d+)?) ended as OUT_OF_MEMORY", run.output))
    assert told == set(re.findall(r"\[(\d+(?:_\d+)?)\] EATS", run.output)), run.dump()
    assert sorted("_" in job for job in told) == [False, True], run.dump()
    place.wait_gone(since, "OUT_OF_MEMORY")

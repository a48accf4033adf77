"""Ends that Slurm gives a job: told in words, with Slurm's own name of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest

from ..workplace import RUN_S
from .ends import at_work
from .flows import works
from .place import SlurmPlace
from .place import slurm as slurm

pytestmark = pytest.mark.slow

WITHIN_S = 40.0
"""Slurm looks every 30 s for jobs whose deadline has passed."""


def test_a_node_that_is_set_down_and_a_deadline_that_has_passed_are_told(slurm: Callable[..., SlurmPlace]) -> None:
    place = slurm(3)
    gang = at_work(place)
    since = time.monotonic()
    place.slurm.run("scontrol", "update", "nodename=gang2", "state=down", "reason=test")
    assert gang.wait_over(since, "a node is set down", WITHIN_S) == "NODE_FAIL"
    gang.run.fails(RUN_S)
    print(f"NODE_FAIL: the run had ended after {time.monotonic() - since:.1f} s")
    said = f"Slurm job failed: Slurm job {gang.job} ended as NODE_FAIL (NodeDown): Slurm lost a node of it."
    assert said in gang.run.output, gang.run.dump()
    # The node, which comes back by itself, takes no other job; this one needs a minute of the 62 s that it has.
    place.slurm.run("scontrol", "update", "nodename=gang2", "state=drain", "reason=test")
    run = place.run(works(place.folder, options='time=1, sbatch="--deadline=now+62"'))
    run.wait_for("nodes that it needs are down, drained or reserved", RUN_S)
    since = time.monotonic()
    run.fails(RUN_S)
    print(f"DEADLINE: the run had ended after {time.monotonic() - since:.1f} s")
    assert "ended as DEADLINE: its deadline passed." in run.output, run.dump()
    place.wait_gone(since, "a deadline")

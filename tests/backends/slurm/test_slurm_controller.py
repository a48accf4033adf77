"""A job outlives what happens to Slurm itself: a drained node, a requeue, a controller that restarts or is away."""

from __future__ import annotations

import time
from collections.abc import Callable

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest

from ..workplace import RUN_S, result
from .ends import at_work
from .place import SlurmPlace
from .place import slurm as slurm

pytestmark = pytest.mark.slow

AWAY_S = 30.0


def test_a_job_outlives_what_happens_to_slurm(slurm: Callable[..., SlurmPlace]) -> None:
    place = slurm(3)
    gang = at_work(place)
    # Slurm would start the same attempt again: it is told that it must not.
    refused = place.slurm.run("scontrol", "requeue", gang.job, check=False)
    assert place.slurm.job(gang.job)["JobState"] == "RUNNING", refused
    print("requeue:", refused.strip())
    place.slurm.run("scontrol", "update", "nodename=gang2", "state=drain", "reason=test")
    # In the middle of the job, and then for longer than the run's next looks.
    place.slurm.controller.end()
    place.slurm.start_controller()
    place.slurm.wait_job(gang.job, "RUNNING", timeout=RUN_S)
    place.slurm.controller.end()
    gone = time.monotonic()
    gang.run.wait_for("The job goes on, and so does the wait for it.", RUN_S)
    print(f"the run told that the controller does not answer after {time.monotonic() - gone:.1f} s")
    time.sleep(max(0.0, AWAY_S - (time.monotonic() - gone)))  # the time is what is tested
    place.slurm.start_controller()
    back = time.monotonic()
    gang.run.wait_for("Slurm answers again.", RUN_S)
    print(f"and that it answers again {time.monotonic() - back:.1f} s after its return")
    (place.folder / "go").touch()
    since = time.monotonic()
    assert gang.wait_over(since, "all is well", RUN_S) == "COMPLETED"
    gang.run.ok(RUN_S)
    assert result(gang.run) == [""] * 3, gang.run.dump()
    assert gang.run.output.count("is submitted") == 1, gang.run.dump()
    assert place.slurm.states()["gang2"].startswith("drained"), place.slurm.logs()

"""What Slurm refuses, what would wait for ever, and what waits: told in one sentence, and not tried again."""

from __future__ import annotations

import time
from collections.abc import Callable

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest

from ..workplace import RUN_S, result
from .flows import works
from .place import SlurmPlace
from .place import slurm as slurm

pytestmark = pytest.mark.slow

Slurms = Callable[..., SlurmPlace]

REFUSED = {
    'partition="nope"': ("Slurm refuses the job: sbatch: ", "invalid partition specified: nope"),
    'partition="closed", account="chemistry"': (
        "would never start (Job's account not known",
        "see account and qos of @slurm",
    ),
    'time="2:00:00"': ("would never start (PartitionTimeLimit)", "It has been cancelled"),
}


def test_a_refused_job_is_told_in_one_sentence_and_not_tried_again(slurm: Slurms) -> None:
    place = slurm(2, settings="PartitionName=closed Nodes=ALL AllowAccounts=physics\n")
    for options, sentences in REFUSED.items():
        run = place.run(works(place.folder, nodes=2, options=options, retries=2))
        since = time.monotonic()
        run.fails(RUN_S)
        print(f"{options}: the run had ended after {time.monotonic() - since:.1f} s")
        told = [line for line in run.output.splitlines() if sentences[0] in line]
        assert len(told) == 1 and sentences[1] in told[0], run.dump()
        assert "Traceback" not in run.output and "retry" not in run.output, run.dump()
        assert not place.slurm.jobs(), place.slurm.logs()


def test_a_full_queue_is_told_once_and_waited_for(slurm: Slurms) -> None:
    place = slurm(2)
    (place.folder / "go").touch()
    other = place.slurm.run("sbatch", "--parsable", "--nodes=2", "--exclusive", "--wrap=sleep 1000").strip()
    place.slurm.wait_job(other, "RUNNING")
    run = place.run(works(place.folder, nodes=2))
    run.wait_for("is pending (Resources: it waits for nodes to become free)", RUN_S)
    place.slurm.run("scancel", other)
    run.ok(RUN_S)
    assert result(run) == [""] * 2, run.dump()
    assert run.output.count("is pending") == 1, run.dump()
    place.wait_gone(time.monotonic(), "after a full queue")

"""What tests of a job's end share: a gang at work on three nodes, and the seconds until nothing of it is left."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from support.processes import Process, wait_gone
from support.remote import RemoteTask

from ..workplace import RUN_S
from .flows import AT_WORK, works
from .place import Node, SlurmPlace

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")

_STEP_S = 0.05


@dataclass
class AtWork:
    """A gang in its first attempt, whose three bodies run, and what may be asked of its job.

    Attributes
    ----------
    job : str
        Its number.
    processes : list of Process
        All of it on the nodes, srun and the batch script included.
    """

    place: SlurmPlace
    run: RemoteTask
    nodes: list[Node]
    job: str
    processes: list[Process] = field(default_factory=list)

    def wait_over(self, since: float, what: str, within: float, gone_within: float | None = None) -> str:
        """Wait until the job is over and none of its processes is left; print the seconds since ``since``.

        Returns the state that Slurm has it in; AssertionError where it takes longer than ``within`` seconds, or its
        processes longer than ``gone_within``.
        """
        state, job_s, gone_s = "", 0.0, 0.0
        pids = [process.pid for process in self.processes]
        while not (job_s and gone_s):
            now = time.monotonic() - since
            if not job_s and (state := self.place.slurm.job(self.job).get("JobState", "")) in OVER:
                job_s = now
            if not gone_s and not wait_gone(pids, 0):
                gone_s = now
            assert now < within, f"{what}: {state}, left: {self.place.slurm.left()}\n{self.run.dump()}"
            time.sleep(_STEP_S)
        print(f"{what}: {state} after {job_s:.1f} s, no process after {gone_s:.1f} s")
        assert gone_within is None or gone_s < gone_within, self.run.dump()
        return state


def at_work(place: SlurmPlace, options: str = "", retries: int = 0) -> AtWork:
    """Start a gang, and wait until all of its bodies run."""
    run = place.run(works(place.folder, options=options, retries=retries))
    nodes = [place.node(index, AT_WORK, run, timeout=RUN_S) for index in range(3)]
    (job,) = place.slurm.jobs("RUNNING")
    processes = [
        process
        for number in place.machines
        for process in place.hosts[number].processes()
        if "slurmd" not in process.command[:1]
    ]
    return AtWork(place, run, nodes, job, processes)

"""What this backend asks of Slurm, whichever way it asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..states import JobState


@dataclass(frozen=True)
class Submission:
    """A job, or an array of jobs, as Slurm gets it.

    Attributes
    ----------
    name : str
        Shown by squeue.
    output : str
        File for what the batch script prints.
    options : tuple of str
        Of sbatch, each as one word: the same for all jobs of an array.
    script : str
        The batch script.
    array : sequence of int
        The array's indices; empty for a job that is none.
    """

    name: str
    output: str
    options: tuple[str, ...]
    script: str
    array: Sequence[int] = ()

    def indices(self) -> str:
        """The array's indices as Slurm reads them."""
        if list(self.array) == list(range(len(self.array))):
            return f"0-{len(self.array) - 1}"
        return ",".join(map(str, self.array))

    def words(self) -> list[str]:
        """The command that submits it; it reads the script from its stdin and prints the job's number."""
        array = [f"--array={self.indices()}"] if self.array else []
        return ["sbatch", "--parsable", f"--job-name={self.name}", f"--output={self.output}", *array, *self.options]


class Slurm(Protocol):
    """A way to ask Slurm. A job is named by its number, one of an array by NUMBER_INDEX."""

    def submit(self, submission: Submission) -> str:
        """Submit a job or an array; returns its number.

        Raises
        ------
        SlurmRefused
            Slurm does not take it; the message is Slurm's own.
        SlurmDoesNotAnswer
        """

    def find(self, name: str) -> str:
        """The number of this user's job or array of this name; "" where Slurm has none. Raises SlurmDoesNotAnswer."""

    def state(self, job: str) -> JobState:
        """What Slurm says about a job. Raises SlurmDoesNotAnswer."""

    def states(self) -> dict[str, JobState]:
        """What it says about all jobs of this user that have not ended, by one question. Raises SlurmDoesNotAnswer."""

    def cancel(self, job: str) -> None:
        """Cancel a job; no error where it is over."""

    def for_watcher(self) -> dict[str, list[str]]:
        """The commands by which :mod:`..watcher` cancels a job; ``{}`` in them stands for its number, or its name."""

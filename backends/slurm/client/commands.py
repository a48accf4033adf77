"""Slurm by its commands, on the machine where they are."""

from __future__ import annotations

import contextlib
import re

from ..exceptions import SlurmDoesNotAnswer, SlurmException, SlurmRefused
from ..states import JobState, parse_sacct, parse_scontrol, parse_squeue
from .interface import Submission
from .machine import Machine

NO_ANSWER = re.compile(
    r"Unable to contact|Connection refused|connect failure|timed out|Socket|Zero Bytes|temporarily|Transport endpoint"
    r"|Connection (?:closed|reset)|Could not resolve",
    re.IGNORECASE,
)
"""What Slurm's commands, and ssh, print where nobody answers."""


class Commands:
    """As :class:`.interface.Slurm`, by sbatch, squeue, scontrol, sacct and scancel."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def submit(self, submission: Submission) -> str:
        status, output, complaint = self._machine.run(submission.words(), submission.script.encode())
        if status == 0:
            return output.decode().strip().partition(";")[0]
        said = " ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in complaint.splitlines())
        if NO_ANSWER.search(said):
            raise SlurmDoesNotAnswer(f"sbatch on {self._machine.where}: {said}")
        raise SlurmRefused(f"sbatch: {said or f'exit status {status}'}")

    def find(self, name: str) -> str:
        output = self._squeue("--states=all", f"--name={name}", "--format=%F")
        return [*output.split(), ""][0]

    def _squeue(self, *words: str) -> str:
        status, output, complaint = self._machine.run(["squeue", "--noheader", "--me", *words])
        if status:
            raise SlurmDoesNotAnswer(f"squeue on {self._machine.where}: {complaint}")
        return output.decode("utf-8", "replace")

    def state(self, job: str) -> JobState:
        status, output, complaint = self._machine.run(["scontrol", "--oneliner", "show", "job", job])
        if status == 0 and output.strip():
            return parse_scontrol(output.decode("utf-8", "replace").splitlines()[0])
        # "Job 7_3 not found" is said of one that was cancelled before it had a number of its own.
        if "Invalid job id" not in complaint and " not found" not in f"{output.decode()} {complaint}":
            raise SlurmDoesNotAnswer(f"scontrol on {self._machine.where}: {complaint}")
        # The controller forgets jobs after MinJobAge; where the site keeps accounts, those remember.
        status, output, _ = self._machine.run(
            ["sacct", "-j", job, "-X", "-n", "-P", "-o", "State,Reason,ExitCode,NodeList"]
        )
        return parse_sacct(output.decode("utf-8", "replace")) if status == 0 else JobState("")

    def states(self) -> dict[str, JobState]:
        return parse_squeue(self._squeue("--array", "--format=%i|%T|%N|%r"))

    def cancel(self, job: str) -> None:
        with contextlib.suppress(SlurmException):
            self._machine.run(["scancel", "--quiet", job])

    def for_watcher(self) -> dict[str, list[str]]:
        prefix, squeue = self._machine.prefix, ("squeue", "--noheader")
        return {
            "find": [*prefix, *squeue, "--me", "--states=all", "--format=%F", "--name={}"],
            "cancel": [*prefix, "scancel", "--quiet", "{}"],
            "left": [*prefix, *squeue, "--format=%T", "--jobs={}"],
            "answers": [*prefix, *squeue, "--me", "--format=%i"],
        }

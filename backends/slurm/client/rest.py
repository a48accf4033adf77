"""Slurm by slurmrestd, its server for HTTP, on a Unix socket or at an URL."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from typing import Any

from ..exceptions import SlurmDoesNotAnswer, SlurmException, SlurmRefused
from ..states import ALIVE, JobState
from . import rest_call
from .commands import NO_ANSWER
from .interface import Submission

_PROPERTIES = {
    "--partition": "partition",
    "--account": "account",
    "--qos": "qos",
    "--constraint": "constraints",
    "--time": "time_limit",
    "--chdir": "current_working_directory",
}
"""Options of sbatch, and the property of a job that has the same text."""

_NUMBERS = {"--cpus-per-task": "cpus_per_task", "--ntasks-per-node": "tasks_per_node"}

_FLAGS = {"--exclusive": {"exclusive": "exclusive"}, "--no-kill": {"no_kill": "set"}}

_ELSEWHERE = ("--nodes", "--signal", "--no-requeue", "--export")
"""Options for which slurmrestd has no property that works: :func:`properties` and :func:`script` do without."""

ENVIRONMENT = {"SLURM_GET_USER_ENV": "1"}
"""What ``sbatch --export=NONE`` gives a job: its node adds the variables of the user's login shell."""

_REQUEUED = 99
"""The exit status of a job that Slurm has started once more."""


def properties(submission: Submission, url: str) -> dict[str, Any]:
    """A job as slurmrestd describes it.

    Raises
    ------
    SlurmRefused
        An option of sbatch for which it has nothing.
    """
    given = _options(submission)
    nodes = int(given["--nodes"])
    found: dict[str, Any] = {
        "name": submission.name,
        "standard_output": submission.output,
        "environment": ENVIRONMENT,
        "nodes": [nodes, nodes],
        "tasks": nodes,
    }
    if submission.array:
        found["array"] = submission.indices()
    for option, value in given.items():
        if option in _PROPERTIES:
            found[_PROPERTIES[option]] = value
        elif option in _NUMBERS:
            found[_NUMBERS[option]] = int(value)
        elif option == "--gpus-per-node":
            found["gpus_per_node"] = f"gpu:{value}" if value.isdecimal() else value
        elif option == "--mem" and re.fullmatch(r"\d+M", value):
            found["memory_per_node"] = int(value[:-1])
        elif option in _FLAGS and not value:
            found.update(_FLAGS[option])
        elif option not in _ELSEWHERE:
            raise SlurmRefused(
                f"{option} of @slurm(sbatch=...) cannot be passed to the slurmrestd at {url}: leave it out, or log in "
                "to the cluster over SSH."
            )
    return found


def _options(submission: Submission) -> dict[str, str]:
    """The options by their names, with their values; "" for none."""
    parts = [word.partition("=") for word in submission.options]
    return {name: value for name, _, value in parts}


def script(submission: Submission) -> str:
    """The batch script, with what sbatch would have told Slurm and slurmrestd cannot.

    That the job is not to be started again; and the signal before its time limit, which slurmrestd has for the steps
    of a job only: the script sends it to itself, where it is known when the limit comes.
    """
    given = _options(submission)
    first, _, rest = submission.script.partition("\n")
    lines = [first, f'[ -z "$SLURM_RESTART_COUNT" ] || exit {_REQUEUED}']
    limit_s, before = _seconds(given.get("--time", "")), given.get("--signal", "").rpartition("@")[2]
    if limit_s and before.isdecimal() and limit_s > int(before):
        lines.append(f"(sleep {limit_s - int(before)}; kill -USR1 $$) &")
    return "\n".join([*lines, rest])


def _seconds(limit: str) -> int:
    """A time limit as sbatch reads it, in seconds; 0 for none."""
    days, _, clock = limit.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdecimal() for part in parts) or not (days or "0").isdecimal():
        return 0
    units = (3600, 60, 1) if days or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(int(part) * unit for part, unit in zip(parts, units, strict=False))


class Rest:
    """As :class:`.interface.Slurm`, by slurmrestd.

    Parameters
    ----------
    url : str
        ``unix:///path/of/socket``, ``http://host:port`` or ``https://host:port``.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def _ask(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        try:
            status, said = rest_call.ask(self._url, method, path, body)
        except OSError as error:
            raise SlurmDoesNotAnswer(f"slurmrestd at {self._url}: {error}") from None
        if status == 401:
            raise SlurmRefused(
                f"slurmrestd at {self._url} does not know who asks: set SLURM_JWT to a token (scontrol token), or use "
                "its Unix socket as a user whom it knows."
            )
        if status != 200 and NO_ANSWER.search(complaint := _complaint(said)):
            raise SlurmDoesNotAnswer(f"slurmrestd at {self._url}: {complaint}")
        return status, said

    def submit(self, submission: Submission) -> str:
        job = properties(submission, self._url)
        status, said = self._ask("POST", "/job/submit", {"job": job, "script": script(submission)})
        if status != 200 or not said.get("job_id"):
            raise SlurmRefused(f"slurmrestd: {_complaint(said) or f'status {status}'}")
        return str(said["job_id"])

    def _records(self, job: str = "") -> dict[str, dict[str, Any]]:
        try:
            found = rest_call.records(self._url, job)
        except OSError as error:
            raise SlurmDoesNotAnswer(f"slurmrestd at {self._url}: {error}") from None
        if found is None:
            raise SlurmDoesNotAnswer(f"slurmrestd at {self._url} cannot say which jobs there are.")
        return found

    def find(self, name: str) -> str:
        return rest_call.named(self._records(), name)

    def state(self, job: str) -> JobState:
        record = self._records(job).get(job)
        return _state(record) if record else JobState("")

    def states(self) -> dict[str, JobState]:
        found = {job: _state(record) for job, record in self._records().items()}
        return {job: state for job, state in found.items() if state.state in ALIVE}

    def cancel(self, job: str) -> None:
        with contextlib.suppress(SlurmException):
            self._ask("DELETE", f"/job/{job}")

    def for_watcher(self) -> dict[str, list[str]]:
        command = [sys.executable, "-I", "-S", os.path.abspath(rest_call.__file__), self._url]
        verbs = {verb: [*command, verb, "{}"] for verb in ("find", "cancel", "left")}
        return {**verbs, "answers": [*command, "answers"]}


def _complaint(said: dict[str, Any]) -> str:
    """What went wrong, as a sentence."""
    texts = [str(error.get("description") or error.get("error") or "") for error in said.get("errors", [])]
    return "; ".join(filter(None, texts))


def _state(record: dict[str, Any]) -> JobState:
    state, reason = str(record.get("job_state", "")), str(record.get("state_reason", ""))
    if state == "FAILED" and record.get("preempt_time"):
        state = "PREEMPTED"
    status = int(record.get("exit_code") or 0)
    description = str(record.get("state_description") or "").replace(" ", "_")
    return JobState(
        state,
        description or ("" if reason == "None" else reason),
        f"{status >> 8}:{status & 127}",
        record.get("nodes", ""),
    )

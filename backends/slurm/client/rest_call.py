"""Questions to slurmrestd, by the standard library only: ``python -I -S rest_call.py URL VERB [JOB]``.

The command is for :mod:`..watcher`, which cancels the job of a run that is gone. Its verbs are find, cancel, left and
answers; it prints what ``squeue`` would.
"""

from __future__ import annotations

import base64
import getpass
import http.client
import json
import os
import socket
import sys
import urllib.parse
from typing import Any

API = "/slurm/v0.0.38"
"""The version of the interface that slurmrestd has had since Slurm 22.05."""

ANSWER_S = 60.0

NO_SUCH_JOB = 2017
"""Slurm's number of that error."""

ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
    "OUT_OF_MEMORY",
)


class _Socket(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_S)
        self.sock.connect(self._path)


def is_url(login: str) -> bool:
    """Whether this names a slurmrestd, and no machine to log in to."""
    return login.startswith(("http://", "https://", "unix:"))


def _connection(url: str) -> http.client.HTTPConnection:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "unix":
        return _Socket(parts.path)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.netloc, timeout=ANSWER_S)


def ask(url: str, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
    """The status and what slurmrestd says, with its ``errors`` at least. OSError where it does not answer.

    A token in SLURM_JWT says who asks; without one it is the user at this end of a Unix socket.
    """
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if token := os.environ.get("SLURM_JWT"):
        headers.update({"X-SLURM-USER-NAME": _user_of(token), "X-SLURM-USER-TOKEN": token})
    connection = _connection(url)
    try:
        connection.request(method, API + path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        content = response.read()
    except http.client.HTTPException as error:
        raise OSError(f"no answer in HTTP: {error!r}") from None
    finally:
        connection.close()
    try:
        said = json.loads(content)
    except ValueError:
        said = {"errors": [{"error": content.decode("utf-8", "replace").strip()}]}
    return response.status, said if isinstance(said, dict) else {"errors": []}


def _user_of(token: str) -> str:
    """Whose token it is, by its claim "sun"; this process's user where it cannot be read."""
    try:
        claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
        return str(claims["sun"])
    except (ValueError, LookupError, TypeError):
        return getpass.getuser()


def numbers(record: dict[str, Any]) -> list[str]:
    """The jobs that a record describes: one, or those elements of an array that have not started."""
    array = record.get("array_job_id")
    if not array:
        return [str(record["job_id"])]
    if record.get("array_task_id") is not None:
        return [f"{array}_{record['array_task_id']}"]
    found = []
    for part in str(record.get("array_task_string", "")).partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            found += [f"{array}_{index}" for index in range(int(first), int(last or first) + 1)]
    return found


def records(url: str, job: str = "") -> dict[str, dict[str, Any]] | None:
    """What slurmrestd says about a job or an array, or about all jobs, by their numbers; None where it does not."""
    path = f"/job/{job.partition('_')[0]}" if job else "/jobs"
    status, said = ask(url, "GET", path)
    if status != 200:
        return {} if NO_SUCH_JOB in error_numbers(said) else None
    return {number: record for record in said.get("jobs", []) for number in numbers(record)}


def error_numbers(said: dict[str, Any]) -> list[int]:
    """Slurm's numbers of what went wrong."""
    return [int(error.get("error_number") or error.get("error_code") or 0) for error in said.get("errors", [])]


def named(found: dict[str, dict[str, Any]], name: str) -> str:
    """The number of the job or array of this name; "" for none."""
    numbers = [record.get("array_job_id") or record["job_id"] for record in found.values() if record["name"] == name]
    return str(numbers[0]) if numbers else ""


def main(url: str, verb: str, job: str = "") -> int:
    """The command; its exit status says whether Slurm has answered."""
    try:
        if verb == "answers":
            return int(ask(url, "GET", "/ping")[0] != 200)
        if verb == "cancel":
            status, said = ask(url, "DELETE", f"/job/{job}")
            return int(status != 200 and NO_SUCH_JOB not in error_numbers(said))
        found = records(url, job if verb == "left" else "")
    except OSError:
        return 1
    if found is None:
        return 1
    if verb == "find":
        print(named(found, job))
    elif job in found and found[job].get("job_state") not in ENDED:
        print(found[job].get("job_state"))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

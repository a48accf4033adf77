"""Cancels a job whose run is gone, and removes the job's folder: ``python -I -S watcher.py``, in a session of its own.

Metaflow ends the processes that wait for its tasks by SIGKILL, and a run's host may go down with its terminal. The pipe
to this process closes then, whatever the reason.

It reads lines of JSON from its stdin: first ``{"commands": {...}, "prefix": [...], "name": ..., "folder": ...}``, then
``{"name": ..., "index": ...}`` where the job will be one of an array, ``{"job": ID}`` when there is a job, and
``{"over": true}`` when the job has ended by itself.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import Any

GONE_S = 300.0
"""How long the job may take to disappear after it was cancelled: Slurm waits for nodes that do not answer."""

TRIES = 30

LOOK_S = 2.0


def call(argv: list[str], value: str = "") -> tuple[int, str]:
    """Run a command, with ``value`` in the place of ``{}``; its exit status and output."""
    try:
        done = subprocess.run(
            [word.replace("{}", value) for word in argv] if value else argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return 1, ""
    return done.returncode, done.stdout.strip()


def cancel(said: dict[str, Any]) -> str:
    """Cancel the job until Slurm has taken it; without its number, by its name. Returns its number; "" for no job."""
    for _ in range(TRIES):
        status, output = (0, said["job"]) if said.get("job") else call(said["commands"]["find"], said["name"])
        if status == 0:
            if not output:
                return ""
            job = output.split()[0]
            # Of an array this run's other tasks have the other elements.
            if not said.get("job") and said.get("index") is not None:
                job = f"{job}_{said['index']}"
            if call(said["commands"]["cancel"], job)[0] == 0:
                return job
        time.sleep(LOOK_S)
    return str(said.get("job", ""))


def wait_until_gone(commands: dict[str, list[str]], job: str) -> bool:
    """Whether nothing of the job runs any more; waits for :data:`GONE_S` at most."""
    deadline = time.monotonic() + GONE_S
    while time.monotonic() < deadline:
        status, output = call(commands["left"], job)
        # It fails for a job that Slurm has forgotten, and also where the controller does not answer.
        if not output and (status == 0 or call(commands["answers"])[0] == 0):
            return True
        time.sleep(LOOK_S)
    return False


def main() -> None:
    """The command."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    said: dict[str, Any] = {}
    for line in sys.stdin:
        said.update(json.loads(line))
    if "commands" not in said:
        return
    job = str(said.get("job", "")) if said.get("over") else cancel(said)
    if not job or wait_until_gone(said["commands"], job):
        folder, prefix = str(said["folder"]), said["prefix"]
        call([*prefix, "rm", "-rf", "--", folder])
        call([*prefix, "rmdir", "--ignore-fail-on-non-empty", "--", folder.rpartition("/")[0]])  # the run's


if __name__ == "__main__":
    main()

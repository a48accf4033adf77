"""Cancels a job whose run is gone, and removes the job's folder: ``python -I -S watcher.py``, in a session of its own.

Metaflow ends the processes that wait for its tasks by SIGKILL, and a run's host may go down with its terminal. The pipe
to this process closes then, whatever the reason.

It reads lines of JSON from its stdin: first ``{"prefix": [...], "name": ..., "folder": ...}``, then ``{"job": ID}``
when there is a job, and ``{"over": true}`` when the job has ended by itself.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

GONE_S = 300.0
"""How long the job may take to disappear after it was cancelled: Slurm waits for nodes that do not answer."""

LOOK_S = 2.0


def call(argv: list[str]) -> tuple[int, str]:
    """Run a command; its exit status and output."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return 1, ""
    return done.returncode, done.stdout.strip()


def cancel(prefix: list[str], name: str, job: str) -> None:
    """Cancel the job until Slurm has taken it; without its number, by its name."""
    which = [job] if job else ["--me", f"--name={name}"]
    for _ in range(30):
        if call([*prefix, "scancel", "--quiet", *which])[0] == 0:
            return
        time.sleep(LOOK_S)


def wait_until_gone(prefix: list[str], job: str) -> bool:
    """Whether nothing of the job runs any more; waits for :data:`GONE_S` at most."""
    deadline = time.monotonic() + GONE_S
    while time.monotonic() < deadline:
        status, output = call([*prefix, "squeue", "--noheader", "--format=%T", f"--jobs={job}"])
        # squeue fails for a job that Slurm has forgotten, and also where the controller does not answer.
        if not output and (status == 0 or call([*prefix, "squeue", "--noheader", "--me", "--format=%i"])[0] == 0):
            return True
        time.sleep(LOOK_S)
    return False


def main() -> None:
    """The command."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    said: dict[str, object] = {}
    for line in sys.stdin:
        said.update(json.loads(line))
    if "prefix" not in said:
        return
    prefix, name, job = said["prefix"], str(said["name"]), str(said.get("job", ""))
    assert isinstance(prefix, list)
    if not said.get("over"):
        cancel(prefix, name, job)
    if not job or wait_until_gone(prefix, job):
        folder = str(said["folder"])
        call([*prefix, "rm", "-rf", "--", folder])
        call([*prefix, "rmdir", "--ignore-fail-on-non-empty", "--", folder.rpartition("/")[0]])  # the run's


if __name__ == "__main__":
    main()

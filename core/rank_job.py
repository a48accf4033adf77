"""Stands between a launcher that is not ours and each of its ranks: ``python -I -S rank_job.py NAME``.

``NAME.json`` in this node's private folder (METAFLOW_GANG_FOLDER) says what the rank is to run, and what of its
environment the step has changed: so neither arguments nor variables pass through the launcher, whose own ways with them
are a shell's at best and its command line for all to read at worst. When the rank fails, this says so on stderr, in the
words that :mod:`rank_report` finds. A rank starts each time, so it imports little.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.path and __file__.startswith(sys.path[0] + "/"):
    # Where it is not started with -I, this file's folder comes first on the path.
    del sys.path[0]

import contextlib
import json
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

FOLDER = "METAFLOW_GANG_FOLDER"

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

ASKED_TOO_S = 0.2
"""For a launcher that ends all descendants of its own, one after the other, to come from the rank to its wrapper."""

_VISIBLE = "CUDA_VISIBLE_DEVICES"

# What a rank is called by those who start ranks, and what torch calls it.
_BY_MPI = {
    "RANK": ("OMPI_COMM_WORLD_RANK", "PMI_RANK"),
    "LOCAL_RANK": ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"),
    "WORLD_SIZE": ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
    "LOCAL_SIZE": ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"),
}


def main(name: str) -> int:
    """Run the rank; its exit code, 128 and the signal's number where it was killed."""
    with open(os.path.join(os.environ[FOLDER], f"{name}.json"), encoding="utf-8", errors="surrogateescape") as file:
        job = json.load(file)
    env = rank_environment(job, dict(os.environ))
    argv = [*job["program"], *local_rank(job, env), *job["arguments"]]
    child = os.fork()
    if child == 0:
        run(argv, env)
    asked: set[int] = set()

    def pass_on(number: int, frame: object) -> None:
        asked.add(number)
        os.kill(child, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    # It is not reaped before signals are blocked: its number could be another's when one is passed on.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code and not was_ended_by_the_launcher(code, asked):
        _, is_gang, node = os.environ.get("METAFLOW_GANG_ID", "").rpartition(".")
        os.write(2, f"[gang] rank {env['RANK']} (node {node if is_gang else 0}) ended with {code}\n".encode())
    elif not code:
        mark_the_end(env["TORCHELASTIC_ERROR_FILE"])
    return 128 - code if code < 0 else code


def mark_the_end(error_file: str) -> None:
    """Leave the mark of a rank that came to its end with code 0, where it has not done so itself."""
    with contextlib.suppress(OSError):
        os.close(os.open(f"{error_file}.ended", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def was_ended_by_the_launcher(code: int, asked: set[int]) -> bool:
    """Whether a rank died by a signal that this wrapper has been sent, too: another rank's failure is the cause."""
    if -code not in PASSED_ON:
        return False
    # The launcher may have sent it to the rank first.
    return -code in asked or signal.sigtimedwait([-code], ASKED_TOO_S) is not None


def rank_environment(job: dict[str, Any], env: dict[str, str]) -> dict[str, str]:
    """What the launcher gave, with what the step changed, but for what is the launcher's to say."""
    kept = set(job["launchers_own"])
    for name in job["unset"]:
        if name not in kept:
            env.pop(name, None)
    env.update({name: value for name, value in job["set"].items() if name not in kept})
    for name, others in _BY_MPI.items():
        found = [env[other] for other in others if other in env]
        if found and name not in env:
            env[name] = found[0]
    for name, value in job["defaults"].items():
        env.setdefault(name, value)
    if job["devices"] and env.get(_VISIBLE):
        # The launcher counts from 0; the node's share of the machine need not begin there.
        env[_VISIBLE] = ",".join(job["devices"][int(number)] for number in env[_VISIBLE].split(","))
    env.setdefault("METAFLOW_GANG_NUMBERED", "1")
    env.setdefault("TORCHELASTIC_ERROR_FILE", f"{job['errors']}-rank-{env.get('RANK')}-error.json")
    return env


def local_rank(job: dict[str, Any], env: dict[str, str]) -> list[str]:
    """The argument that DeepSpeed gives each script."""
    return [f"--local_rank={env['LOCAL_RANK']}"] if job["local_rank"] else []


def run(argv: list[str], env: dict[str, str]) -> NoReturn:
    """Become the rank."""
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        os.write(2, f"[gang] {argv[0]!r} could not be started: {error.strerror}.\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

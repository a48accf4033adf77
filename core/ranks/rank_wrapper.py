"""The program between a foreign launcher, such as DeepSpeed's or torchrun's agent, and each of its ranks.

``python -I -S rank_wrapper.py NAME``: ``NAME.json`` in this node's private folder (METAFLOW_GANG_FOLDER) has the rank's
command and the variables that the step has changed. So neither passes through the launcher, which may interpret them as
a shell does or show them on its command line. When the rank fails, the wrapper prints the line that :mod:`rank_report`
finds.

``rank_wrapper.py --record PATH PROGRAM ARGUMENT...``: the launcher gives each rank its arguments and variables, and the
wrapper records the rank's end for the node's guard. torchrun's agent itself reports a failed rank only after it has
ended the others, and not at all where it is ended before. "{rank}" in ``PATH`` stands for the rank's number. The rank
writes its exception to ``PATH``; ``PATH.exit`` has its exit code, ``PATH.ended`` exists where that is 0, the time of
``PATH.asked`` is when it was first asked to end. Files of an earlier attempt of the same rank are removed.

A rank starts each time, so this imports little.
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
    from collections.abc import Callable
    from typing import Any, NoReturn

FOLDER = "METAFLOW_GANG_FOLDER"

RECORD = "METAFLOW_GANG_RECORD"
"""Where the rank itself writes its exception, besides the launcher's own error file."""

RESTART, RESTART_COUNT = "GANG_RESTART", "TORCHELASTIC_RESTART_COUNT"
"""How often the gang has started all ranks again, and the launcher; see ``core/gang/tries.py``."""

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
    asked: set[int] = set()
    code = ended([*job["program"], *local_rank(job, env), *job["arguments"]], env, asked)
    if code and not was_ended_by_the_launcher(code, asked):
        _, is_gang, node = os.environ.get("METAFLOW_GANG_ID", "").rpartition(".")
        os.write(2, f"[gang] rank {env['RANK']} (node {node if is_gang else 0}) ended with {code}\n".encode())
    elif not code:
        leave(f"{env['TORCHELASTIC_ERROR_FILE']}.ended")  # where the rank has not done so itself
    return 128 - code if code < 0 else code


def record(template: str, argv: list[str]) -> int:
    """Run the rank and record its end; its exit code. Where a signal has ended it, this ends by the same."""
    path = template.replace("{rank}", os.environ.get("RANK", "0"))
    for suffix in ("", ".exit", ".ended", ".asked"):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path + suffix)
    env = {"METAFLOW_GANG_NUMBERED": "1", **os.environ, RECORD: path}
    if os.environ.get(RESTART):
        # The agent counts its own restarts alone.
        env[RESTART_COUNT] = str(int(os.environ[RESTART]) + int(os.environ.get(RESTART_COUNT) or 0))
    asked: set[int] = set()
    code = ended(argv, env, asked, lambda: leave(f"{path}.asked"))
    if asked or (code and was_ended_by_the_launcher(code, asked)):
        leave(f"{path}.asked")
    elif code:
        leave(f"{path}.exit", str(code))
    else:
        leave(f"{path}.ended")
    if code < 0:
        die_by(-code)
    return code


def ended(argv: list[str], env: dict[str, str], asked: set[int], on_first: Callable[[], None] | None = None) -> int:
    """Run ``argv`` until it ends; its exit code, negative for a signal.

    Parameters
    ----------
    asked : set of int
        Gets the signals that this process is sent in the meantime. They are passed on.
    on_first : callable, optional
        Called at the first of them, by a launcher that signals the group of each rank where that has a session of its
        own, as torchrun's agent does: the rank has the signal then.
    """
    child = os.fork()
    if child == 0:
        run(argv, env)
    has_it_too = on_first is not None and os.getpgrp() == os.getpid()

    def pass_on(number: int, frame: object) -> None:
        if on_first is not None and not asked:
            on_first()
        asked.add(number)
        if not has_it_too:
            os.kill(child, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    # It is not reaped before signals are blocked: its number could be another's when one is passed on.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def leave(path: str, text: str = "") -> None:
    """Write a file whole, or make an empty one; the moment of an empty one is that of the first call."""
    with contextlib.suppress(OSError):
        if not text:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            return
        with open(f"{path}.{os.getpid()}", "w") as file:
            file.write(text)
        os.replace(f"{path}.{os.getpid()}", path)


def die_by(number: int) -> None:
    """End this process by the signal that has ended the rank, without a core of its own."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)


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
    sys.exit(record(sys.argv[2], sys.argv[3:]) if sys.argv[1] == "--record" else main(sys.argv[1]))

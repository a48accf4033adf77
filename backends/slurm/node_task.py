"""What srun starts on each node, ``python -I node_task.py FOLDER``: it runs the node's task, and keeps its log.

It uses the standard library only. Nothing else stands between srun and the task: a shell that is killed would leave the
task running, and processes that copy the output would die of the SIGTERM that Slurm sends to all processes of a job.

The folder is the job's. It has ``spec.json``, and gets for node N ``node-N/stdout`` and ``node-N/stderr`` while the
task runs, and ``exit-N`` when it has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from datetime import datetime, timezone
from typing import IO, Any

OF_SRUN = (
    "PMI",
    "PALS_",
    "SLURM_CPU_BIND",
    "SLURM_DISTRIBUTION",
    "SLURM_GTIDS",
    "SLURM_LAUNCH_",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_NPROCS",
    "SLURM_NTASKS",
    "SLURM_PMI",
    "SLURM_PROCID",
    "SLURM_SRUN_",
    "SLURM_STEP",
    "SLURM_TASKS_PER_NODE",
    "SLURM_TASK_PID",
    "SLURM_UMASK",
)
"""Beginnings of the variables that describe srun's one task a node. Lightning, JAX, Open MPI and Intel MPI would take
them for a description of the ranks. Those of the job stay (SLURM_JOB_ID, SLURM_JOB_NODELIST, SLURM_CPUS_ON_NODE).
"""

SURVIVED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Slurm sends them to all processes of a job, the task among them, which is the one to act on them."""

ORPHANS_S = 20.0
"""The task's guard reports, ends what is left, and then itself; what runs longer than this after the task is killed."""

PARENT_DIED, SUBREAPER = 1, 36
"""PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER of prctl(2)."""

FIRST_SAVE_S, MOST_SAVE_S = 10.0, 60.0
"""The log is stored this long after the start, then ever more rarely: each time is a Python that imports Metaflow."""

SAVING_S = 120.0

CANNOT_START = 127


def task_environment(spec: dict[str, Any], place: dict[str, Any], environ: dict[str, str]) -> dict[str, str]:
    """The variables of a node's task, of those that srun gives and those of the job's specification."""
    env = {name: value for name, value in environ.items() if not name.startswith(OF_SRUN)}
    env.update(spec["env"])
    env.update(place["env"])
    for name, value in spec["prepended"].items():
        env[name] = f"{value}:{env[name]}" if env.get(name) else value
    if spec["address_variable"]:
        # srun runs on the job's first node, which is node 0, and says by which address the others have reached it.
        env[spec["address_variable"]] = environ["SLURM_LAUNCH_NODE_IPADDR"]
    return env


class Pump(threading.Thread):
    """Copies one stream of the task, line by line, into the node's log, in the form of Metaflow's logs."""

    def __init__(self, source: IO[bytes], path: str, around: list[str]) -> None:
        super().__init__(daemon=True)
        self._source, self._path = source, path
        self._before, self._between, self._after = (part.encode() for part in around)

    def run(self) -> None:
        # Unbuffered: the run's side reads the file while it grows.
        with open(self._path, "ab", buffering=0) as log:
            while line := self._source.readline():
                moment = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f").encode()
                name = uuid.uuid4().hex.encode()
                # A full disk: the task goes on without its log.
                with contextlib.suppress(OSError):
                    log.write(b"".join((self._before, moment, self._between, name, self._after, line)))


def own_children() -> list[int]:
    """Processes whose parent is this one: the task, and what its processes have left behind."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def wait_for_orphans(seconds: float) -> None:
    """Wait until nothing is left of the task; end what runs longer than ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid:
            continue
        if time.monotonic() > deadline:
            for child in own_children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.05)


def start(argv: list[str], env: dict[str, str], folder: str) -> subprocess.Popen[bytes]:
    """Start the task. It gets a SIGTERM where this process is killed, so that it does not go on alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(SUBREAPER, 1, 0, 0, 0)

    def before_exec() -> None:
        libc.prctl(PARENT_DIED, signal.SIGTERM, 0, 0, 0)
        for number in SURVIVED:
            signal.signal(number, signal.SIG_DFL)

    return subprocess.Popen(
        argv,
        env=env,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=before_exec,
    )


class LogKeeper(threading.Thread):
    """Stores the log as that of the node's task, from time to time and at the end.

    What goes wrong with it is in srun's output, and is no failure.
    """

    def __init__(self, argv: list[str], env: dict[str, str], folder: str) -> None:
        super().__init__(daemon=True)
        self._argv, self._env, self._folder = argv, env, folder
        self._over = threading.Event()
        self._saving: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        pause = FIRST_SAVE_S
        while not self._over.wait(pause):
            self.save()
            pause = min(MOST_SAVE_S, pause * 1.5)

    def save(self) -> None:
        """Store it now."""
        with contextlib.suppress(OSError):
            self._saving = subprocess.Popen(
                self._argv, env=self._env, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            try:
                self._saving.wait(SAVING_S)
            except subprocess.TimeoutExpired:
                self._saving.kill()
                self._saving.wait()

    def stop(self) -> None:
        """End what is being stored: all of it is stored once more at the end."""
        self._over.set()
        if self._saving is not None:
            with contextlib.suppress(ProcessLookupError):
                self._saving.kill()
        self.join()


def run(folder: str, node: int) -> int:
    """Run the task of a node, and return its exit status as a shell has it."""
    with open(os.path.join(folder, "spec.json")) as file:
        spec = json.load(file)
    place = spec["nodes"][node]
    code = os.path.join(folder, "code")
    logs = os.path.join(folder, f"node-{node}")
    os.makedirs(logs, exist_ok=True)
    env = task_environment(spec, place, dict(os.environ))
    task = start(place["argv"], env, code)
    streams = (("stdout", task.stdout), ("stderr", task.stderr))
    pumps = [Pump(stream, os.path.join(logs, name), spec["around"]) for name, stream in streams if stream]
    keeper = LogKeeper(spec["save_logs"], env, code)
    for thread in (*pumps, keeper):
        thread.start()
    status = task.wait()
    keeper.stop()
    wait_for_orphans(ORPHANS_S)
    for pump in pumps:
        pump.join(5)
    status = 128 - status if status < 0 else status
    # Reported first: storing logs takes a second, and the run may go on meanwhile.
    tell(folder, node, status)
    keeper.save()
    return status


def tell(folder: str, node: int, status: int) -> None:
    """Write the file by which the run learns that the node's task has ended."""
    path = os.path.join(folder, f"exit-{node}")
    with open(f"{path}.new", "w") as file:
        file.write(f"{status}\n")
    os.rename(f"{path}.new", path)


def main() -> int:
    """The command: ``node_task.py FOLDER``."""
    for number in SURVIVED:
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the task would inherit
    folder, node = sys.argv[1], int(os.environ["SLURM_PROCID"])
    try:
        return run(folder, node)
    except OSError as error:
        print(f"The task of node {node} cannot start: {error}", file=sys.stderr, flush=True)
        tell(folder, node, CANNOT_START)
        return CANNOT_START


if __name__ == "__main__":
    sys.exit(main())

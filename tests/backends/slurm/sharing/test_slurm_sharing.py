"""A process that submits for others is gone in the middle of it: they neither wait for ever nor run a task twice."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

WITHIN_S = 60.0

# The first sbatch hangs. squeue knows the array where the test says so.
_COMMANDS = {
    "sbatch": """
cat >{folder}/script.$$
echo "$PPID $*" >>{folder}/calls
if [ $(wc -l <{folder}/calls) = 1 ]; then read line <{folder}/never; fi
echo 8
""",
    "squeue": """
case "$*" in *--name=*/array-*) cat {folder}/taken ;; esac
""",
    "scancel": """
echo "$*" >>{folder}/cancelled
""",
}

_TASK = """
import os, sys
import metaflow
from metaflow_extensions.gang.backends.slurm.attributes import read, with_defaults
from metaflow_extensions.gang.backends.slurm.client.commands import Commands
from metaflow_extensions.gang.backends.slurm.client.machine import Machine
from metaflow_extensions.gang.backends.slurm.job import Job
from metaflow_extensions.gang.backends.slurm.sharing.meeting import address
from metaflow_extensions.gang.backends.slurm.sharing.shared import SharedSlurm
from metaflow_extensions.gang.backends.slurm.submission import Watch

folder = sys.argv[-1]
machine = Machine()
slurm = Commands(machine)
job = Job("Flow/1/work/" + os.path.basename(folder) + "/0", folder, "python3", 1, read(with_defaults({})), ())
shared = SharedSlurm(slurm, address(os.path.dirname(folder)), os.getppid(), lambda text, stream: None)
watch = Watch(slurm, (), job.name, folder)
print("NUMBER", shared.submit_task(job, machine, watch), os.listdir(folder), flush=True)
watch.over()
"""


class Tasks:
    """Two processes that wait for tasks of one step, as the run's command for them is named."""

    def __init__(self, folder: Path, taken: str) -> None:
        self.folder = folder
        for name, text in _COMMANDS.items():
            (folder / name).write_text("#!/bin/sh" + text.format(folder=folder))
            (folder / name).chmod(0o755)
        (folder / "taken").write_text(taken)
        os.mkfifo(folder / "never")
        env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        self.processes = []
        for task in ("a", "b"):
            (folder / task).mkdir()
            argv = [sys.executable, "-c", _TASK, "slurm", "step", "work", str(folder / task)]
            self.processes.append(subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True))

    def calls(self) -> list[str]:
        """What sbatch was called with, after the pid of the process that has."""
        return self.lines("calls")

    def lines(self, name: str) -> list[str]:
        """Those of a file, where there is one."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def wait(self, is_so: Callable[[], object], what: str) -> None:
        """Wait; AssertionError after :data:`WITHIN_S`."""
        deadline = time.monotonic() + WITHIN_S
        while not is_so():
            assert time.monotonic() < deadline, f"not {what}: {self.calls()}"
            time.sleep(0.05)

    def other(self, pid: int) -> subprocess.Popen[str]:
        """The process that does not submit."""
        return next(process for process in self.processes if process.pid != pid)

    def close(self) -> None:
        """Let the sbatch that hangs go on, as an orphan, and wait for all."""
        descriptor = os.open(self.folder / "never", os.O_RDWR | os.O_NONBLOCK)
        os.write(descriptor, b"\n")
        for process in self.processes:
            process.wait(WITHIN_S)
        os.close(descriptor)


@pytest.mark.parametrize("taken", [True, False])
def test_the_process_that_submits_for_others_is_killed(tmp_path: Path, taken: bool) -> None:
    tasks = Tasks(tmp_path, "7\n" if taken else "")
    try:
        tasks.wait(tasks.calls, "submitted")
        submits = int(tasks.calls()[0].split()[0])
        assert "--array=0-1 " in tasks.calls()[0]
        os.kill(submits, signal.SIGKILL)
        output, _ = tasks.other(submits).communicate(timeout=WITHIN_S)
        found = re.search(r"NUMBER (\S+) (.*)", output)
        assert found, output
        if taken:
            # Each has its own element, and that of the process that was killed is cancelled.
            assert found.group(1) in ("7_0", "7_1") and len(tasks.calls()) == 1, tasks.calls()
            killed = "7_0" if found.group(1) == "7_1" else "7_1"
            tasks.wait(lambda: tasks.lines("cancelled") == [f"--quiet {killed}"], f"{killed} cancelled")
        else:
            assert found.group(1) == "8" and "--array" not in tasks.calls()[1], tasks.calls()
            # The element does not run that the first sbatch may still submit.
            assert "not-in-array-" in found.group(2), output
            assert not tasks.lines("cancelled")
    finally:
        tasks.close()

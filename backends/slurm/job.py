"""One job as data: its batch script, and the command lines of sbatch and srun."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .attributes import Request
from .client.interface import Submission

OUTPUT = "batch.out"
"""The file in the job's folder for what the batch script and srun print."""

STORING_S = 15
"""Seconds that the nodes have from the end of node 0's task to store their logs, where others may be lost: srun waits
for a lost node until Slurm has noticed it, which takes SlurmdTimeout, 300 s by default.
"""

CANNOT_UNPACK = 97
"""The batch script's exit status where the code package cannot be unpacked."""


_WAIT = ("wait $!; status=$?", "while kill -0 $! 2>/dev/null; do wait $!; status=$?; done")
"""Lines of shell that wait for the end of srun; a signal of Slurm interrupts a wait."""


@dataclass(frozen=True)
class Job:
    """What a job is made of.

    Attributes
    ----------
    name : str
        Shown by squeue; unique for each attempt of a task.
    folder : str
        The job's own, on a file system that the run's side and all nodes have.
    python : str
        The interpreter of the nodes.
    unpack : sequence of str
        Lines of shell that unpack the code package into the working directory.
    tolerates_lost_nodes : bool
        Whether the job goes on without nodes other than the first, and its end is that of node 0's task.
    """

    name: str
    folder: str
    python: str
    num_nodes: int
    request: Request
    unpack: Sequence[str]
    tolerates_lost_nodes: bool = False

    def options(self) -> tuple[str, ...]:
        """Options of sbatch; tasks for which they are the same can be one array."""
        return (
            f"--nodes={self.num_nodes}",
            "--ntasks-per-node=1",
            "--chdir=/",
            # A job that Slurm starts again would have the same attempt of the same task: Metaflow's @retry does that.
            "--no-requeue",
            *(["--no-kill"] if self.tolerates_lost_nodes else []),
            # The run's own variables, the markers of gangs among them, are not the job's.
            "--export=NONE",
            *([f"--signal=B:USR1@{self.request.signal_s}"] if self.request.signal_s else []),
            *self.request.options,
        )

    def submission(self) -> Submission:
        """What Slurm gets."""
        return Submission(self.name, f"{self.folder}/{OUTPUT}", self.options(), self.script())

    def srun(self) -> list[str]:
        """The command that starts the node's tasks, one on each node."""
        return [
            "srun",
            f"--nodes={self.num_nodes}",
            f"--ntasks={self.num_nodes}",
            "--ntasks-per-node=1",
            *([f"--cpus-per-task={self.request.cpus}"] if self.request.cpus else []),
            "--cpu-bind=none",
            "--distribution=block",
            "--mpi=none",
            "--export=ALL",
            # A task that has ended, well or not, is no reason for srun to end the others: a node's body may be over
            # long before node 0's, and nodes that have failed report why, and store their state. follow.py cancels.
            "--kill-on-bad-exit=0",
            "--wait=0",
            *(["--no-kill"] if self.tolerates_lost_nodes else []),
            "--input=none",
            f"--output={self.folder}/srun-%t.out",
            *self.request.container,
            self.python,
            "-I",
            f"{self.folder}/node_task.py",
            self.folder,
        ]

    def script(self) -> str:
        """The batch script, which runs on the job's first node.

        SIGUSR1 is what Slurm sends before the time limit; it becomes a notice in the job's folder, in the form that
        core/guard/node/preemption.py gives. SIGTERM also comes to the tasks, which report why they end: the script
        waits for them. Where node 0's task has failed before, its grace is over, and srun may wait for a lost node that
        only Slurm's timeouts end: srun is killed, so that nothing of the job stays on the other nodes.
        """
        folder = shlex.quote(self.folder)
        unpack = " && ".join(["mkdir -p code", "cd code", *self.unpack])
        return "\n".join(
            [
                "#!/bin/bash",
                f"cd {folder} && {unpack} || exit {CANNOT_UNPACK}",
                f"notice() {{ {self._notice()} > {folder}/notice.new; mv {folder}/notice.new {folder}/notice; }}",
                "trap notice USR1",
                f"ended() {{ read -r first < {folder}/exit-0 && [ $first != 0 ] && kill -KILL $!; }} 2>/dev/null",
                "trap ended TERM",
                f"{shlex.join(self.srun())} &",
                *(self._wait_for_node_0() if self.tolerates_lost_nodes else _WAIT),
                f"echo $status > {folder}/exit.new; mv {folder}/exit.new {folder}/exit",
                "exit $status",
                "",
            ]
        )

    def _wait_for_node_0(self) -> list[str]:
        """Lines of shell that wait for the end of node 0's task, which is the last of those that are not lost."""
        ended = shlex.quote(f"{self.folder}/exit-0")
        return [
            f"while kill -0 $! 2>/dev/null && [ ! -e {ended} ]; do sleep 1; done",
            f"for second in {{1..{STORING_S}}}; do kill -0 $! 2>/dev/null && sleep 1; done",
            f"if [ -e {ended} ]; then status=$(cat {ended}); else wait $!; status=$?; fi",
        ]

    def _notice(self) -> str:
        """A shell command that prints the moment of the end, and its reason."""
        return f'date -u -d "@$(($(date +%s) + {self.request.signal_s}))" "+%FT%TZ Slurm\'s time limit"'


def specification(
    env: Mapping[str, str],
    prepended: Mapping[str, str],
    nodes: Sequence[Mapping[str, Any]],
    address_variable: str,
    around: Sequence[bytes],
    python: str,
) -> str:
    """The content of ``spec.json``, which :mod:`node_task` reads.

    Parameters
    ----------
    env, prepended : mapping
        Variables of all nodes: those to set, and those that come before a value that is there.
    nodes : sequence of mapping
        Of each node: ``argv``, the task's command, and ``env``, the variables of it alone.
    address_variable : str
        The variable for node 0's address; "" for a task that is no gang's.
    around : sequence of bytes
        What stands before, between and after time and id of a stored line of a log.
    """
    return json.dumps(
        {
            "env": dict(env),
            "prepended": dict(prepended),
            "nodes": [dict(node) for node in nodes],
            "address_variable": address_variable,
            "around": [part.decode() for part in around],
            "save_logs": [python, "-m", "metaflow.mflog.save_logs"],
        }
    )

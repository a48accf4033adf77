"""Follows a job from its submission to its end, as the run's console shows it."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace

from ..metaflow_compat.task_environment import shown_line
from .client.interface import Slurm
from .client.machine import Machine
from .exceptions import SlurmDoesNotAnswer, SlurmJobCancelled, SlurmJobFailed, SlurmRefused
from .job import OUTPUT
from .states import JobState, end, never_starts, progress

FIRST_STATE_S, MOST_STATE_S = 0.5, 10.0
"""The controller is asked this often at first and at last: many jobs of many users ask it."""

GRACE_S = 5.0
"""How long the other nodes may take to end after node 0's task has failed. All nodes have the report by then; a node
that Slurm itself has to find lost takes it SlurmdTimeout, 300 s by default.
"""

SILENT_S = 7.0
"""The same where all other nodes' tasks have failed and node 0's has not ended: its host is lost, or all was killed.
Where it is not, node 0's task may still make its card.
"""

HOPELESS_S = 3.0
"""How long a reason that keeps a job from ever starting has to last: Slurm may give another one at first."""

LAST_LINES = 20

_NOISE = re.compile(
    r"lacks support for cpu binding|Job step aborted: Waiting|got SIGCONT|forcing job termination|CANCELLED AT"
)
"""Lines of srun that say nothing more than the job's state does."""

_OUT_OF_MEMORY = re.compile(rb"Out Of Memory|oom[-_]kill", re.IGNORECASE)
"""What srun prints where a task of its step ended so."""


class Follower:
    """One job.

    Parameters
    ----------
    echo : callable
        Prints a line for the user, on the stream of this name.
    tolerates_lost_nodes : bool
        Whether node 0's task may go on without the others'.
    run : int
        Pid of the run, this process's parent; 0 for none to heed.

    Attributes
    ----------
    is_over : bool
        Whether Slurm has said that the job has ended.
    """

    def __init__(
        self,
        machine: Machine,
        slurm: Slurm,
        job: str,
        folder: str,
        num_nodes: int,
        echo: Callable[[str, str], None],
        tolerates_lost_nodes: bool = False,
        run: int = 0,
    ) -> None:
        self._machine, self._slurm = machine, slurm
        self._job, self._folder, self._num_nodes, self._echo = job, folder, num_nodes, echo
        self._tolerates, self._run = tolerates_lost_nodes, run
        self._read = {"stdout": 0, "stderr": 0}
        self._told = ""
        self._silent = False
        self._began = time.monotonic()
        self._failed_at: dict[str, float] = {}
        self._hopeless_since: float | None = None
        self.is_over = False

    def say(self, text: str) -> None:
        """A line of our own."""
        self._echo(f"[{self._job}] {text}", "stderr")

    def follow(self) -> None:
        """Return when the job has succeeded.

        Raises
        ------
        SlurmRefused
            It would never start, and has been cancelled.
        SlurmJobCancelled
        SlurmJobFailed
        SystemExit
            The run is gone, which a job that prints nothing would never show.
        """
        next_state, exits = 0.0, set[str]()
        while True:
            if self._run and os.getppid() != self._run:
                raise SystemExit(1)
            names = set(self._machine.names(self._folder))
            self._show_log()
            now = time.monotonic()
            ended = {name for name in names if name.startswith("exit") and not name.endswith(".new")}
            if now >= next_state or ended != exits:
                exits = ended
                state = self._state()
                if state is not None and self._heed(state):
                    return
                age = now - self._began
                next_state = now + (FIRST_STATE_S if exits else min(MOST_STATE_S, max(FIRST_STATE_S, age / 20)))
            if self._give_up_at(exits, now) < now:
                self._give_up(exits)
            time.sleep(self._machine.look_s)

    def _state(self) -> JobState | None:
        try:
            state = self._slurm.state(self._job)
        except SlurmDoesNotAnswer as error:
            if not self._silent:
                self.say(f"{error.message} The job goes on, and so does the wait for it.")
            self._silent = True
            return None
        if self._silent:
            self.say("Slurm answers again.")
        self._silent = False
        return state

    def _heed(self, state: JobState) -> bool:
        """Print what has changed; whether the job has succeeded."""
        if not state.is_over:
            text = progress(state)
            # A job that completes has reported its end already.
            if (
                text not in ("", self._told)
                and not never_starts(state)
                and state.state not in ("COMPLETING", "STAGE_OUT", "SIGNALING")
            ):
                self.say(f"Slurm job {self._job} {text}")
                self._told = text
            why = never_starts(state)
            self._hopeless_since = (self._hopeless_since or time.monotonic()) if why else None
            if self._hopeless_since and time.monotonic() - self._hopeless_since > HOPELESS_S:
                self._slurm.cancel(self._job)
                raise SlurmRefused(f"Slurm job {self._job} {why}. It has been cancelled.")
            return False
        self.is_over = True
        if not state.state:
            state = self._from_exit_file()
        self._show_log(last=True)
        if state.state == "COMPLETED":
            return True
        self._show_what_is_left()
        state = self._with_cause(state)
        sentence = f"Slurm job {self._job} {end(state)}."
        if state.state == "CANCELLED":
            raise SlurmJobCancelled(sentence)
        raise SlurmJobFailed(sentence)

    def _with_cause(self, state: JobState) -> JobState:
        """Slurm has OUT_OF_MEMORY as the end of srun's step, and FAILED as that of the job around it."""
        said = self._machine.read(os.path.join(self._folder, OUTPUT)) if state.state == "FAILED" else b""
        return replace(state, state="OUT_OF_MEMORY", reason="") if _OUT_OF_MEMORY.search(said) else state

    def _from_exit_file(self) -> JobState:
        """The end of a job that Slurm has forgotten, by the file that its batch script has left."""
        if "_" in self._job and OUTPUT not in self._machine.names(self._folder):
            # Slurm gives an element of an array a number of its own, and so a memory, when it starts.
            return JobState("CANCELLED")
        status = self._machine.read(os.path.join(self._folder, "exit")).decode().strip()
        if status == "0":
            return JobState("COMPLETED")
        return JobState("FAILED", "", f"{status or '?'}:0")

    def _give_up_at(self, exits: set[str], now: float) -> float:
        """When the job is cancelled, since its other tasks have not ended; infinity where none has failed."""
        for name in exits - self._failed_at.keys() - {"exit"}:
            has_failed = self._machine.read(os.path.join(self._folder, name)).strip() != b"0"
            self._failed_at[name] = now if has_failed else math.inf
        of_node_0 = self._failed_at.get("exit-0", math.inf)
        of_others = [at for name, at in self._failed_at.items() if name != "exit-0"]
        # One that has failed alone may be a node that the launcher can do without.
        all_others = max(of_others) if 0 < len(of_others) == self._num_nodes - 1 else math.inf
        return min(of_node_0 + GRACE_S, all_others + (SILENT_S if not self._tolerates else math.inf))

    def _give_up(self, exits: set[str]) -> None:
        missing = [str(node) for node in range(self._num_nodes) if f"exit-{node}" not in exits]
        if not missing:
            return
        self._show_log(last=True)
        self._show_what_is_left()
        self._slurm.cancel(self._job)
        failed, grace_s = (
            ("the tasks of all others have", SILENT_S) if "0" in missing else ("node 0's task has", GRACE_S)
        )
        raise SlurmJobFailed(
            f"Slurm job {self._job}: {failed} failed, and after {grace_s:g} s the task of "
            f"{'node' if len(missing) == 1 else 'nodes'} {', '.join(missing)} has not ended. The job has been "
            "cancelled; Slurm itself would wait longer for a node that is lost."
        )

    def _show_log(self, last: bool = False) -> None:
        for stream, start in self._read.items():
            content = self._machine.read(os.path.join(self._folder, "node-0", stream), start)
            whole = content if last else content[: content.rfind(b"\n") + 1]
            self._read[stream] = start + len(whole)
            for line in whole.splitlines():
                self._echo(shown_line(line, f"[{self._job}] "), stream)

    def _show_what_is_left(self) -> None:
        """What Slurm and srun have printed, and another node's log, where node 0's task has not ended by itself."""
        if "exit-0" in self._machine.names(self._folder):
            return
        for path in (OUTPUT, "srun-0.out"):
            text = self._machine.read(os.path.join(self._folder, path)).decode("utf-8", "replace")
            for line in [line for line in text.splitlines() if not _NOISE.search(line)][-LAST_LINES:]:
                self.say(f"{path}: {line}")
        if self._num_nodes == 1:
            return
        for node in range(1, self._num_nodes):
            lines = self._machine.read(os.path.join(self._folder, f"node-{node}", "stderr")).splitlines()
            if lines:
                self.say(f"Node 0's task has not reported its end. The last lines of node {node}:")
                for stored in lines[-LAST_LINES:]:
                    self._echo(shown_line(stored, f"[{self._job} node {node}] "), "stderr")
                return

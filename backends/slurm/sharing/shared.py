"""A task's way to Slurm together with the other tasks of its run: in an array, and with one question for all."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

from ..client.interface import Slurm, Submission
from ..client.machine import ANSWER_S, Machine
from ..exceptions import SlurmDoesNotAnswer
from ..job import Job
from ..states import JobState
from ..submission import UNANSWERED_S, Watch, submit
from .arrays import refusal
from .batches import MOST_WAIT_S
from .meeting import Link, meet
from .server import Server

ARRAY_S = MOST_WAIT_S + 20.0
"""For the process that serves to make an array. One that takes longer is stopped, or its machine overloaded."""

FIND_S = 3.0
"""For the submission of a process that is gone to show in the queue."""

TRIES = 3

_STEP_S = 1.0


class SharedSlurm:
    """As :class:`..client.interface.Slurm`, for one task of many.

    Parameters
    ----------
    slurm : Slurm
        What is asked.
    name : str
        Where the processes of the run meet, by :func:`.meeting.address`.
    run, say
        As for :class:`.batches.Batches`.
    """

    def __init__(self, slurm: Slurm, name: str, run: int, say: Callable[[str, str], None]) -> None:
        self._slurm, self._name, self._run, self._say = slurm, name, run, say
        self._link: Link | None = None
        self._server: Server | None = None

    def submit_task(self, job: Job, machine: Machine, watch: Watch) -> str:
        """Submit the job in an array where there are others like it, else alone; returns its number.

        Raises
        ------
        SlurmRefused
        SlurmDoesNotAnswer
        """
        for _ in range(TRIES):
            if not (link := self._meet()):
                break
            step = job.name.rsplit("/", 2)[0]
            link.send(submit=step, options=job.options(), folder=job.folder)
            answer = self._receive(ARRAY_S)
            if answer is None:
                continue
            if "alone" in answer:
                break
            name, index = str(answer["array"]), int(answer["index"])
            watch.expects(name, index)
            link.send(ready=True)
            answer = self._receive(UNANSWERED_S + 2 * ANSWER_S)
            if answer is None:
                if number := self._taken_meanwhile(name, index, job, machine):
                    return number
                continue
            if "silent" in answer:
                raise SlurmDoesNotAnswer(str(answer["silent"]))
            if "job" in answer:
                return f"{answer['job']}_{index}"
            watch.expects(job.name)
            number = submit(self._slurm, job.submission(), self._say)
            if answer["alone"]:
                self._say(f"Slurm takes no array ({answer['alone']}); each task becomes a job of its own.", "stderr")
            return number
        watch.expects(job.name)
        return submit(self._slurm, job.submission(), self._say)

    def _taken_meanwhile(self, name: str, index: int, job: Job, machine: Machine) -> str:
        """The element of an array that a process has submitted, or was about to, which is gone; "" for none."""
        deadline = time.monotonic() + FIND_S
        while time.monotonic() < deadline:
            if number := self._slurm.find(name):
                return f"{number}_{index}"
            time.sleep(_STEP_S)
        # Its sbatch may still be at work: that element does not run then.
        machine.touch(os.path.join(job.folder, refusal(name)))
        if number := self._slurm.find(name):
            self._slurm.cancel(f"{number}_{index}")
        return ""

    def _meet(self) -> Link | None:
        if self._link is None:
            self._link = meet(self._name, self._serve)
        return self._link

    def _serve(self, listener: socket.socket) -> None:
        self._server = Server(listener, self._slurm, self._run, self._say)

    def _receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The answer; None where the process that serves is gone, or does not answer."""
        assert self._link is not None
        try:
            answer = self._link.receive(timeout_s)
        except TimeoutError:
            answer = None
        if answer is None:
            self._link.close()
            self._link = None
        return answer

    def state(self, job: str) -> JobState:
        for _ in range(TRIES):
            if not (link := self._meet()):
                break
            link.send(state=job)
            answer = self._receive(ANSWER_S + _STEP_S)
            if answer is None:
                continue
            if "silent" in answer:
                raise SlurmDoesNotAnswer(str(answer["silent"]))
            if answer["state"]:
                return JobState(**answer["state"])
            break
        # It has ended: how, Slurm reports of this job alone.
        return self._slurm.state(job)

    def submit(self, submission: Submission) -> str:
        return self._slurm.submit(submission)

    def find(self, name: str) -> str:
        return self._slurm.find(name)

    def states(self) -> dict[str, JobState]:
        return self._slurm.states()

    def cancel(self, job: str) -> None:
        self._slurm.cancel(job)

    def for_watcher(self) -> dict[str, list[str]]:
        return self._slurm.for_watcher()

    def close(self) -> None:
        """This task is over: another process serves."""
        if self._server is not None:
            self._server.close()

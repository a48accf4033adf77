"""Submits a job, also to a Slurm that is busy; and the process that cancels it where the run is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from . import watcher
from .client.interface import Slurm, Submission
from .exceptions import SlurmDoesNotAnswer

UNANSWERED_S = 300.0
"""How long a submission is tried again where Slurm's controller does not answer."""

TRY_AGAIN_S = 5.0


def submit(slurm: Slurm, submission: Submission, say: Callable[[str, str], None]) -> str:
    """Submit; where the controller does not answer, for :data:`UNANSWERED_S`.

    Returns the job's number. Raises SlurmRefused, or SlurmDoesNotAnswer where nobody answered in time.
    """
    deadline, told = time.monotonic() + UNANSWERED_S, False
    while True:
        try:
            # A busy controller may have taken the job although its answer did not come in time.
            if told and (number := slurm.find(submission.name)):
                return number
            return slurm.submit(submission)
        except SlurmDoesNotAnswer as error:
            if time.monotonic() > deadline:
                raise
            if not told:
                say(f"{error.message} The submission is tried again for {UNANSWERED_S:g} s.", "stderr")
            told = True
            time.sleep(TRY_AGAIN_S)


class Watch:
    """The process that cancels the job where this one is gone.

    Parameters
    ----------
    slurm : Slurm
    prefix : sequence of str
        Before the words of a command on the machine that has the job's folder.
    name, folder : str
        Of the job.
    """

    def __init__(self, slurm: Slurm, prefix: Sequence[str], name: str, folder: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", os.path.abspath(watcher.__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        self._say(commands=slurm.for_watcher(), prefix=list(prefix), name=name, folder=folder)

    def _say(self, **values: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(values).encode() + b"\n")
        self._process.stdin.flush()

    def expects(self, name: str, index: int | None = None) -> None:
        """The job is about to be submitted under this name, as this element of an array."""
        self._say(name=name, index=index)

    def submitted(self, job: str) -> None:
        """There is a job."""
        self._say(job=job)

    def over(self) -> None:
        """The job is over, and its folder can go; the process ends by itself."""
        self._say(over=True)

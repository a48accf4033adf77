"""Collects the tasks that processes of a run want to submit at about the same time, and submits them as one array."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..client.interface import Slurm
from ..exceptions import SlurmDoesNotAnswer, SlurmException, SlurmRefused
from ..submission import submit
from .arrays import LARGEST, array
from .meeting import Link
from .siblings import starting

MOST_WAIT_S = 10.0
"""The longest that a task waits for others of its run that have just been started."""

QUIET_S = 0.2
"""For the next process of a run that starts several one after the other."""

READY_S = 5.0
"""For a process to tell its watcher which element of the array will be its own."""

CLOSE_S = 30.0
"""For a submission that goes on while the process that makes it for others is over."""

_STEP_S = 0.1


@dataclass
class Request:
    """A task to be submitted, and the process that waits for it.

    Attributes
    ----------
    step : str
        FLOW/RUN/STEP.
    options : tuple of str
        Of sbatch: tasks of one array have the same.
    """

    link: Link
    step: str
    options: tuple[str, ...]
    folder: str
    answered: threading.Event = field(default_factory=threading.Event)


class Batches:
    """What the process that serves submits for all.

    Parameters
    ----------
    run : int
        Pid of the run.
    say : callable
        Prints a line for the user, on the stream of this name.
    """

    def __init__(self, slurm: Slurm, run: int, say: Callable[[str, str], None]) -> None:
        self._slurm, self._run, self._say = slurm, run, say
        self._pending: list[Request] = []
        self._last = 0.0
        self._known: set[int] = set()
        self._changed = threading.Condition()
        self._submitting = threading.Lock()
        self._arrays_are_refused = self._is_closed = False
        threading.Thread(target=self._work, daemon=True).start()

    def knows(self, pid: int) -> None:
        """This process is past its submission."""
        with self._changed:
            self._known.add(pid)

    def submit(self, request: Request) -> None:
        """Returns when the process of the request has its answer."""
        with self._changed:
            self._pending.append(request)
            self._known.add(request.link.pid)
            self._last = time.monotonic()
            self._changed.notify()
        request.answered.wait()

    def close(self) -> None:
        """Those that wait learn that another process has to submit them; a submission that is under way is finished."""
        with self._changed:
            self._is_closed = True
            for request in self._pending:
                request.link.close()
        if self._submitting.acquire(timeout=CLOSE_S):
            self._submitting.release()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._pending:
                    self._changed.wait()
            self._wait_for_siblings()
            with self._submitting:
                with self._changed:
                    batch, self._pending = self._pending, []
                    if self._is_closed:
                        return
                for requests in _alike(batch):
                    self._submit_alike(requests)

    def _wait_for_siblings(self) -> None:
        deadline = time.monotonic() + MOST_WAIT_S
        while (now := time.monotonic()) < deadline:
            with self._changed:
                steps = {request.step.rpartition("/")[2] for request in self._pending}
                is_quiet, known = now - self._last > QUIET_S, set(self._known)
            if is_quiet and not starting(self._run, steps) - known:
                return
            time.sleep(_STEP_S)

    def _submit_alike(self, requests: Sequence[Request]) -> None:
        """Submit tasks that differ in their folders only, and answer."""
        try:
            if len(requests) == 1 or self._arrays_are_refused:
                for request in requests:
                    request.link.send(alone="")
            else:
                self._submit_array(requests)
        finally:
            for request in requests:
                request.answered.set()

    def _submit_array(self, requests: Sequence[Request]) -> None:
        name = f"{requests[0].step}/array-{uuid.uuid4().hex[:8]}"
        ready = _ready(name, requests)
        if not ready:
            return
        folders = {index: request.folder for index, request in ready.items()}
        try:
            number = submit(self._slurm, array(name, requests[0].options, folders), self._say)
        except SlurmRefused as error:
            self._arrays_are_refused = True
            for place, request in enumerate(ready.values()):
                request.link.send(alone="" if place else error.message)
        except SlurmException as error:
            for request in ready.values():
                request.link.send(silent=error.message, is_final=not isinstance(error, SlurmDoesNotAnswer))
        else:
            for request in ready.values():
                request.link.send(job=number)


def _alike(batch: Sequence[Request]) -> list[list[Request]]:
    """The tasks by what they have in common, in arrays of at most :data:`LARGEST`."""
    groups: dict[tuple[str, tuple[str, ...]], list[Request]] = {}
    for request in batch:
        groups.setdefault((request.step, request.options), []).append(request)
    return [group[start : start + LARGEST] for group in groups.values() for start in range(0, len(group), LARGEST)]


def _ready(name: str, requests: Sequence[Request]) -> dict[int, Request]:
    """The tasks whose processes have told their watchers what to cancel, by their indices in the array."""
    told = {index: request for index, request in enumerate(requests) if request.link.send(array=name, index=index)}
    deadline, ready = time.monotonic() + READY_S, {}
    for index, request in told.items():
        try:
            answer = request.link.receive(max(0.01, deadline - time.monotonic()))
        except TimeoutError:
            answer = None
        if answer and answer.get("ready"):
            ready[index] = request
        else:
            request.link.close()
    return ready

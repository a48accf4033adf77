"""The notice of a task that has died before its node joined, left for the other nodes: on a cluster nobody else sees
that at once, or at all. There is no connection yet, so it is left where the nodes meet, in the datastore. The
guard has no Metaflow: a program of the task's does it, in the task's environment.
"""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..loop.framing import Header

TIMEOUT_S = 10.0
"""For importing Metaflow and writing one small object; without it the others wait until their limit."""


class MeetingNotice:
    """The program ``spec`` (``argv``, ``env``, ``cwd``), which gets the text of the notice as its last argument."""

    def __init__(self, spec: Header, err: int) -> None:
        self._spec = spec
        self._err = err
        self._process: subprocess.Popen[bytes] | None = None

    def leave(self, text: str) -> None:
        """Start to leave a notice of why this node will not join; there is none where the program cannot be started."""
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                [*self._spec["argv"], text],
                env=self._spec["env"],
                cwd=self._spec["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._err,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it is left, for :data:`TIMEOUT_S` at most."""
        if self._process is not None:
            try:
                self._process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()

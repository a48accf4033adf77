"""A guard without a gang: it runs what one process asks for, and ends that and itself with it.

The process sends "setup", then "launch" and "own" as often as it likes. When it has closed its end, or is dead, what
still runs is ended with all its descendants, the private folder goes, and the guard with it.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import TYPE_CHECKING

from .children.launch import Launch
from .children.supervisor import Work
from .children.user_log import UserLog
from .host.owned_files import Owned, remove_folder
from .loop.event_loop import Loop
from .loop.stream import Stream
from .node.requests.pending_requests import PendingRequests
from .processes import process_table
from .processes.watch import TaskWatch
from .settings import use_settings

if TYPE_CHECKING:
    from .loop.framing import Header


class _Identity:
    """Whose debug log it is; the one node has index 0."""

    index = 0

    def __init__(self, task_pid: int) -> None:
        self.started_at = time.monotonic()
        self.task_pid = task_pid
        self.gang_id = self.folder = ""


class SingleNode:
    """The guard of process ``owner_pid``, joined to it by ``sock``; ``out`` and ``err`` are that process's streams."""

    def __init__(self, loop: Loop, sock: socket.socket, owner_pid: int, out: int = 1, err: int = 2) -> None:
        self._identity = _Identity(owner_pid)
        self._loop = loop
        self._err = err
        self._name = ""
        self._folder = ""
        self._leaving = False
        self._owned = Owned()
        self._owner_pid = owner_pid
        # A process that fails ends its launch, whose reply contains the failure: nobody else needs it.
        self._work = Work(loop, out, err, lambda failure: None, lambda key: None, lambda task: None)
        self._log = log = UserLog(err)
        self._work.say = log.say
        stream = Stream(loop, sock)
        stream.on_close = lambda reason: self._leave()
        self._pending = PendingRequests(stream, self._handle)
        # The end of the socket pair does not show a death where a process that the owner forked holds it open.
        self._watch = TaskWatch(loop, owner_pid, self._leave)

    def _handle(self, op: str, header: Header, payload: bytes) -> None:
        number: int = header["id"]
        if op == "setup":
            self._name, self._folder = header["gang_id"], header["folder"]
            use_settings(header.get("settings", {}))
            self._owned.keep(self._folder, self._owner_pid)
            if header.get("debug"):
                from .debug_log import keep

                self._identity.gang_id, self._identity.folder = self._name, self._folder
                keep(self._identity, (self._pending, self._work, self._log))
            self._pending.reply(number, {})
            return
        if op == "own":
            self._owned.add_pattern(header["pattern"])
            self._pending.reply(number, {})
            return
        try:
            self._work.launch(self._name, 0, header["plan"], lambda launch: self._launched(number, launch))
        except (OSError, RuntimeError, ValueError) as error:  # no descriptor or thread is left
            self._pending.reply(number, {"error": f"{type(error).__name__}: {error}"})

    def _launched(self, number: int, launch: Launch) -> None:
        failed = launch.failed
        reply = {} if failed is None else {"failed": {**failed.result(), "traceback": failed.traceback()}}
        self._pending.reply(number, reply)
        self._maybe_exit()

    def has_fault(self, text: str, trace: str) -> None:
        """A callback of this guard has raised: it reports that, and ends."""
        os.write(self._err, f"[gang] {text}\n{trace}\n".encode(errors="replace"))
        self._leave()

    def tidy(self) -> None:
        """Remove what was made for the process that this guard served."""
        self._owned.remove()
        remove_folder(self._folder)

    def _leave(self) -> None:
        """The owner has gone, or needs us no more."""
        self._leaving = True
        self._watch.close()
        self._pending.close()
        self._work.end_launches()
        self._maybe_exit()

    def _maybe_exit(self) -> None:
        if self._leaving and not self._work.launches:
            # Whatever slipped out of its launch, without the marker in its environment, has come to us as orphans do.
            process_table.send(process_table.descendants([os.getpid()]), signal.SIGKILL)
            self.tidy()
            self._loop.stop()

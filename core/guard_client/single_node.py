"""A guard without a gang: it runs a launcher's processes on this machine and ends them with the calling process."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, Protocol

from ..exceptions import GangException, GuardDied, ProcessFailed
from ..guard.debug_log import NAME
from ..guard.host.owned_files import remove_in_its_stead
from ..guard.host.private_folder import in_base
from ..guard.processes.process_table import GANG_MARKER
from ..logs import say
from ..settings.table import DEBUG, guard_settings
from .link import Link

_END_S = 15.0
"""Seconds that a guard may take to end its processes, the plan's grace included; far more than it needs."""


class _SingleNodeLink(Link):
    """The connection to a guard without a gang, which has no body to interrupt and ends when the connection closes."""

    _kind = "single-node"

    def _attach(self) -> None:
        pass

    def _died(self) -> GuardDied:
        died = GuardDied(
            f"The guard process of what was started here (process {self.guard_pid}) has died, so all of it was ended. "
            + self._how_the_guard_ended()
        )
        died.headline = "The guard has died"  # there is no gang that could have failed
        return died

    def close(self) -> None:
        """Have the guard end its processes, and wait for its end."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # a process that user code forked may hold it open
        self._sock.close()
        os.close(self.sigterm_pipe)
        try:
            self._guard.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()

    @property
    def in_order(self) -> bool:
        """Whether the guard has ended after it had cleaned up."""
        return self._guard.returncode == 0


class Plan(Protocol):
    """What is to be run, as the guard takes it: a :class:`~.launch_plan.LaunchPlan`."""

    def to_json(self) -> dict[str, Any]: ...


class SingleNodeGuard:
    """A guard and a private folder for this machine alone, made by :func:`single_node_guard`."""

    def __init__(self, link: Link, name: str, folder: str) -> None:
        self.folder = folder
        self._link = link
        self._name = name

    def own_files(self, pattern: str) -> None:
        """Have the guard remove files that killed programs leave; see :meth:`Gang.own_files`."""
        self._link.request("own", pattern=pattern)

    def launch(self, plan: Plan) -> None:
        """Run a plan and wait for its end; output goes to this process's stdout and stderr as it comes.

        May be interrupted, as by Ctrl-C: what runs is ended with the block of :func:`single_node_guard`.

        Raises
        ------
        ProcessFailed
            One of its processes has failed; the others were ended.
        GuardDied
            How they ended is not known.
        """
        for stream in (sys.stdout, sys.stderr):
            # Earlier output has to appear first; the guard writes to the descriptors directly.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        marked = plan.to_json()
        for process in marked["processes"]:
            process["env"][GANG_MARKER] = self._name
        header, _ = self._link.request("launch", plan=marked)
        if "error" in header:
            raise GangException(f"Nothing could be started on this machine: {header['error']}.")
        if "failed" in header:
            raise ProcessFailed(header["failed"])


@contextlib.contextmanager
def single_node_guard() -> Iterator[SingleNodeGuard]:
    """Start a guard for the length of a block. Its processes and its folder are gone when the block has ended, or soon
    after this process has died.

    Example
    -------
    ``with single_node_guard() as guard: guard.launch(LaunchPlan((Process(("make",), env=os.environ),)))``
    """
    name = secrets.token_hex(8)
    link = _SingleNodeLink()
    folder = ""
    try:
        folder = in_base("gangs", lambda parent: tempfile.mkdtemp(prefix=f"{name}-single-", dir=parent))
        link.request("setup", gang_id=name, folder=folder, settings=guard_settings({}), debug=DEBUG.read())
        try:
            yield SingleNodeGuard(link, name, folder)
        except BaseException:
            _keep_debug_log(name, folder)
            raise
    finally:
        link.close()
        if not link.in_order:
            link.clean_up_after_guard(name)
            remove_in_its_stead(folder)


def _keep_debug_log(name: str, folder: str) -> None:
    """Keep the guard's debug log, where there is one, when its private ``folder`` goes; say where.

    By a second link to the file: the guard goes on to write how it ends what it has started.
    """
    log = os.path.join(folder, NAME)
    if not os.path.exists(log):
        return

    def keep(parent: str) -> str:
        kept = os.path.join(parent, f"{name}.log")
        os.link(log, kept)
        return kept

    try:
        say(f"The debug log of the guard is kept in {in_base('debug', keep)} (METAFLOW_GANG_DEBUG).")
    except OSError as error:
        say(f"The debug log of the guard could not be kept: {error.strerror}.")

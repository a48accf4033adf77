"""The server for the other nodes: it runs their commands (:mod:`.server`), and receives files and passes them on."""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ..loop.limits import Complaint
from ..tls.endpoints import SecureServer
from ..tls.link import BulkError, Link

if TYPE_CHECKING:
    from ..children.launcher import Launcher


def node_key(secret: bytes) -> bytes:
    """The key that nodes show each other. Whoever reads it cannot join the gang, nor talk to its hub."""
    return hmac.digest(secret, b"gang nodes", "sha256")


class NodeServer(SecureServer):
    """Serves the other nodes of a gang.

    Parameters
    ----------
    launcher : Launcher
        Starts the commands of the other nodes.
    say : callable
        Takes a line for the user.
    folder : str
        This node's private folder.
    host : str
        This node's address, on which they are served.
    key : bytes
        Of :func:`node_key`.
    env, cwd
        The environment and working folder in which commands run: those of this node's task.
    """

    def __init__(
        self,
        launcher: Launcher,
        say: Callable[[str], None],
        folder: str,
        host: str,
        key: bytes,
        env: dict[str, str],
        cwd: str,
    ) -> None:
        from ..file_broadcast import sender
        from . import server  # now: no descriptor may be left when they are needed

        self._chain, self._remote = sender, server
        self._launcher, self._env, self._cwd = launcher, env, cwd
        complain = Complaint(say, f"node {launcher.node}", "for commands and files of other nodes")
        super().__init__(host, key, folder, complain=complain)

    def serve(self, link: Link) -> None:
        request = link.header()
        if "run" in request:
            self._remote.serve(link, request, self._launcher, self._env, self._cwd)
        elif "take" in request:
            self._chain.take(link, request, self._secret, partial(os.path.join, self._cwd))
        else:
            raise BulkError("The request is none that a node knows.")

    def close(self) -> None:
        super().close()
        self._chain.close()  # files that have come in part

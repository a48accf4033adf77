"""A node's server for large values of collectives, which node 0 sends along the chain."""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from functools import partial

from ..loop.limits import Complaint
from ..tls.endpoints import SecureServer
from ..tls.link import BulkError, Link
from ..tls.uploads import plain_path
from . import receiver, sender


def values_key(secret: bytes) -> bytes:
    """The key that nodes show each other for values. It gives no right to run commands, nor to join the gang."""
    return hmac.digest(secret, b"gang values", "sha256")


class ValueServer(SecureServer):
    """Takes files into ``folder``, under plain names, and passes each on to the nodes after this one.

    Parameters
    ----------
    host : str
        Own IP address to listen on.
    key : bytes
        See :func:`values_key`.
    folder : str
        A private folder of this node; it is made where it is missing.
    node : int
        Index of this node, for messages.
    say : callable
        Gets lines for the user.
    """

    def __init__(self, host: str, key: bytes, folder: str, node: int, say: Callable[[str], None]) -> None:
        os.makedirs(folder, 0o700, exist_ok=True)
        self._place = partial(plain_path, folder)
        super().__init__(host, key, folder, complain=Complaint(say, f"node {node}", "for large values"))

    def serve(self, link: Link) -> None:
        request = link.header()
        if "take" not in request:
            raise BulkError("The request is none that a node knows.")
        sender.take(link, request, self._secret, self._place)

    def close(self) -> None:
        super().close()
        receiver.close_all()  # what has come in part

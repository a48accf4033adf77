"""Uploads of large values to node 0: encrypted, authenticated (:mod:`.endpoints`), of any size, in constant memory."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..settings import settings
from .endpoints import SecureServer, connect
from .link import CHUNK, BulkError, Link

__all__ = ["BulkError", "UploadServer", "plain_path", "put"]

_NAME_BYTES = 200


def put(address: str, port: int, secret: bytes, name: str, source_path: str) -> None:
    """Send the file ``source_path`` to the :class:`UploadServer` at ``address``, where it becomes ``name``.

    Raises
    ------
    BulkError
        When it is not there as a whole afterwards. A file that was there before as ``name`` is untouched then.
    OSError
        When the source cannot be read.
    """
    with open(source_path, "rb") as source, connect(address, port, secret) as link:
        size = os.fstat(source.fileno()).st_size
        link.send_header({"put": name, "size": size})
        # Hundreds of nodes may come at once, and wait for their turn as long as the values of others take. The kernel
        # notices when the server or its host is gone, and the gang when its guard stands still.
        link.timeout(None)
        link.answer()
        link.timeout(settings().transfer_stall_timeout)
        try:
            link.send_file(source, size)
        except BulkError:
            link.answer()  # says why the server stopped taking it, where it could say so
            raise
        link.answer()


class UploadServer(SecureServer):
    """Takes files into one folder.

    Parameters
    ----------
    host, secret, handshake_seconds, complain
        As :class:`~.endpoints.SecureServer` has them.
    folder : str
        Where the files go, on this node. Names are plain file names that do not begin with a dot. A file appears
        under its name when all of it is there, with mode 0600; a transfer that :meth:`close` ends leaves nothing.
    """

    def __init__(
        self,
        host: str,
        secret: bytes,
        folder: str,
        handshake_seconds: float | None = None,
        complain: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._folder = folder
        super().__init__(host, secret, folder, handshake_seconds, complain)

    def serve(self, link: Link) -> None:
        try:
            self._answer(link)
        except BulkError as error:
            link.send_header({"error": str(error)})
        except OSError as error:
            link.send_header({"error": f"{error.filename or self._folder}: {error.strerror or error}."})

    def _answer(self, link: Link) -> None:
        request = link.header()
        path, size = plain_path(self._folder, request.get("put")), _size(request.get("size"))
        room = os.statvfs(self._folder)
        if size > room.f_bavail * room.f_frsize:
            raise BulkError(f"There is no room for {size} bytes in {self._folder}.")
        link.send_header({})
        _receive(link, size, path)
        link.send_header({})


def plain_path(folder: str, name: object) -> str:
    """The path of the file ``name`` in ``folder``; BulkError unless it is plain and begins with no dot."""
    if (
        not isinstance(name, str)
        or not name.isprintable()
        or name.startswith(".")
        or "/" in name
        or os.sep in name
        or not 0 < len(name.encode()) <= _NAME_BYTES
    ):
        raise BulkError(f"{str(name)[:80]!r} is not a plain file name.")
    return os.path.join(folder, name)


def _size(value: object) -> int:
    if type(value) is not int or value < 0:
        raise BulkError(f"{value!r} is not a file's size.")
    return value


def _receive(link: Link, size: int, path: str) -> None:
    """Write the next ``size`` bytes to ``path``, which is replaced when all are there."""
    part = os.path.join(os.path.dirname(path), f".{os.urandom(8).hex()}.part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as target:
            while size:
                data = link.receive(min(size, CHUNK))
                target.write(data)
                size -= len(data)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise

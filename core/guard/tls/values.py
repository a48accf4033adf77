"""Files between the nodes of one gang: encrypted, authenticated (:mod:`secure`), of any size, in constant memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from .endpoints import SecureServer, connect
from .link import CHUNK, BulkError, Link

__all__ = ["BulkError", "BulkServer", "get", "put"]

_NAME_BYTES = 200


def put(address: str, port: int, secret: bytes, name: str, source_path: str) -> None:
    """Send the file ``source_path`` to the :class:`BulkServer` at ``address``, where it becomes ``name``.

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
        link.answer()
        try:
            link.send_file(source, size)
        except BulkError:
            link.answer()  # says why the server stopped taking it, where it could say so
            raise
        link.answer()


def get(address: str, port: int, secret: bytes, name: str, target_path: str) -> None:
    """Fetch ``name`` from the :class:`BulkServer` at ``address`` into the file ``target_path`` (mode 0600).

    Raises
    ------
    BulkError
        When it could not be fetched as a whole. A file that was there before at ``target_path`` is untouched then.
    OSError
        When the target cannot be written.
    """
    with connect(address, port, secret) as link:
        link.send_header({"get": name})
        _receive(link, _size(link.answer().get("size")), target_path)


class BulkServer(SecureServer):
    """Takes and gives the files of one folder.

    Parameters
    ----------
    host, secret, handshake_seconds, complain
        As :class:`~.secure.SecureServer` has them.
    folder : str
        Where the files are, on this node. Names are plain file names that do not begin with a dot. A file appears
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
        if "put" in request:
            path, size = self._path(request["put"]), _size(request.get("size"))
            room = os.statvfs(self._folder)
            if size > room.f_bavail * room.f_frsize:
                raise BulkError(f"There is no room for {size} bytes in {self._folder}.")
            link.send_header({})
            _receive(link, size, path)
            link.send_header({})
        else:
            path = self._path(request.get("get"))
            # Not through a link, which may lead out of the folder, and not waiting for the writer of a pipe.
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                os.close(fd)
                raise BulkError(f"{path} is not a file.")
            with open(fd, "rb") as source:
                link.send_header({"size": status.st_size})
                try:
                    link.send_file(source, status.st_size)
                except (BulkError, OSError):
                    # An error's sentence would be taken for a part of the file; its early end is understood.
                    link.abort()
                    raise

    def _path(self, name: object) -> str:
        if (
            not isinstance(name, str)
            or not name.isprintable()
            or name.startswith(".")
            or "/" in name
            or os.sep in name
            or not 0 < len(name.encode()) <= _NAME_BYTES
        ):
            raise BulkError(f"{str(name)[:80]!r} is not a plain file name.")
        return os.path.join(self._folder, name)


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

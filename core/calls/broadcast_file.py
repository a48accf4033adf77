"""``broadcast_file``: a file of control on every node, by the chain of :mod:`core.guard.file_broadcast`."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from typing import Protocol

from ..exceptions import BadAttribute, BroadcastFailed
from ..gang.gang import Gang


class FileServers(Protocol):
    """Where the nodes take files: index, address and port of each."""

    @property
    def hops(self) -> Sequence[tuple[int, str, int]]: ...


def broadcast_file(
    gang: Gang, servers: FileServers | None, path: str | os.PathLike[str], to: str | os.PathLike[str] | None = None
) -> None:
    """Put a file of this node on all other nodes, with its permissions; verified by SHA-256, and never seen half.

    Parameters
    ----------
    gang : Gang
    servers : FileServers, optional
        The nodes' servers; not needed where all nodes are one machine.
    path : path
        Absolute, or relative to the working folder.
    to : path, optional
        Where it goes, on this node too; ``path`` by default. A relative one is relative to each node's own working
        folder. Folders that are missing are made; a file that is there is replaced.

    Raises
    ------
    BadAttribute
        When ``path`` is not a file that can be read, or ``to`` is a folder.
    BroadcastFailed
        Names each node that did not get it, and why. The others have it.

    Example
    -------
    >>> broadcast_file(current.gang, servers, "build/solver")
    """
    source, target = _text("filename", path), _text("to", path if to is None else to)
    whole = os.path.abspath(source)
    if not os.path.isfile(whole):
        what = "is a folder" if os.path.isdir(whole) else "is not there"
        raise BadAttribute(f"broadcast_file({source!r}): {whole} {what}. Name a file of this node.")
    if not os.access(whole, os.R_OK):
        raise BadAttribute(f"broadcast_file({source!r}): {whole} cannot be read by this task's user.")
    if target.endswith(os.sep) or os.path.isdir(target):
        raise BadAttribute(f"broadcast_file({source!r}, to={target!r}): {target} is a folder. Name the file itself.")
    if to is not None:
        _copy(whole, os.path.abspath(target))
    if servers is None or len({node.address for node in gang.nodes}) == 1:
        return  # all are this machine
    hops = [list(hop) for hop in servers.hops if hop[0] != gang.node_index]
    header, _ = gang._link.request("broadcast", path=whole, to=target, hops=hops)
    if "error" in header:
        raise BroadcastFailed(header["error"])


def _text(name: str, value: str | os.PathLike[str]) -> str:
    try:
        text = os.fsdecode(value)
    except TypeError:
        raise BadAttribute(f"broadcast_file({name}={value!r}): {name} is a path.") from None
    if not text or "\0" in text:
        raise BadAttribute(f"broadcast_file({name}={value!r}): {name} is the path of a file.")
    return text


def _copy(source: str, target: str) -> None:
    """Make ``target`` the same as ``source``, at once."""
    if os.path.realpath(source) == os.path.realpath(target):
        return
    folder = os.path.dirname(target)
    part = os.path.join(folder, f".{os.urandom(8).hex()}.part")
    try:
        os.makedirs(folder, exist_ok=True)
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with open(source, "rb") as original, open(fd, "wb") as copy:
                shutil.copyfileobj(original, copy, 1 << 20)
                os.fchmod(fd, os.fstat(original.fileno()).st_mode & 0o777)
            os.replace(part, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
    except OSError as error:
        raise BroadcastFailed(
            f"node 0 did not get {os.path.basename(target)}: {error.filename or target}: {error.strerror or error}."
        ) from None

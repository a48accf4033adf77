"""Collective calls of ``current.gang``: a value of each node, given to all nodes or to one.

Small values travel in the guards' control messages. A large value goes to node 0 once, as a file of its private folder.
From there it goes to the nodes that need it along the chain of :mod:`core.guard.file_broadcast`, all large values of a
call in one file. So do small values that are too much together for a message to every node. Each file is removed as
soon as it is read.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from ..exceptions import BadAttribute, ValueTooStrange
from ..guard.coordinator.messages import fits_all, inline_bytes
from ..guard_client.link import Link
from .arguments import whole
from .programs import refuse_after_the_body

LOST = object()
"""In the place of a lost node's value, where a caller has to tell it from None."""

_ERROR_LENGTH = 900
"""Characters of an error that one node reports to all others in a control message."""


class Address(Protocol):
    """What a collective, and a message about it, needs of another node."""

    @property
    def address(self) -> str: ...

    @property
    def hostname(self) -> str: ...


class Member(Protocol):
    """What a collective needs of the gang: who this node is, and its guard. ``current.gang`` has it."""

    @property
    def node_index(self) -> int: ...

    @property
    def num_nodes(self) -> int: ...

    @property
    def nodes(self) -> Sequence[Address]: ...

    @property
    def folder(self) -> str: ...

    @property
    def _only_on_control(self) -> str: ...

    @property
    def _link(self) -> Link: ...

    @property
    def _sequence(self) -> Iterator[int]: ...


def gather(gang: Member, kind: str, value: Any, root: int | None = None, of_lost: object = None) -> list[Any] | None:
    """Give ``value`` to all nodes, or to node ``root`` alone, and get the values of all.

    Parameters
    ----------
    gang : Member
    kind : str
        What the call is named in messages, as in "barrier()".
    value : any picklable
    root : int, optional
        The node that gets the values; all nodes by default.
    of_lost : object
        What stands for the value of a node that was lost before it gave one, in a gang that goes on without it; it is
        the same on all nodes.

    Returns
    -------
    list or None
        The values by node index; None on a node that is not ``root``.

    Raises
    ------
    ValueTooStrange
        ``value`` cannot be pickled (on this node alone), a large value did not get through (on every node), or a value
        cannot be made of its pickle (on each node that gets it).
    BadAttribute, GangException
        The body runs on node 0 alone, or has ended.
    """
    if gang._only_on_control:
        raise BadAttribute(
            f"current.gang.{kind} needs all nodes, but the body of a step with {gang._only_on_control} runs on "
            "node 0 alone. Let the programs that it starts talk to each other, or use @gang."
        )
    refuse_after_the_body(gang._link, f"current.gang.{kind}")
    try:
        data = pickle.dumps(value, protocol=5)
    except Exception as error:  # pickle raises whatever a __reduce__ raises
        raise ValueTooStrange(
            f"{kind}: a {type(value).__name__} cannot be sent to the other nodes, since it cannot be pickled ({error})."
        ) from error
    # Counted only now: a body that catches the error and gives another value makes the same calls as the others.
    values = _Collective(gang, kind, root, next(gang._sequence)).run(data)
    return values if values is None else [of_lost if value is LOST else value for value in values]


def gather_to_all(gang: Member, kind: str, value: Any, of_lost: object = None) -> list[Any]:
    """As :func:`gather`, without a root: the list is on every node."""
    values = gather(gang, kind, value, of_lost=of_lost)
    assert values is not None
    return values


def check_index(gang: Member, call: str, name: str, index: Any) -> int:
    """The argument ``name`` of ``call``; raises BadAttribute unless it is a node's index."""
    last = gang.num_nodes - 1
    return whole(call, name, index, f"this gang has nodes 0 to {last}", 0, last)


class _Collective:
    """One call on one node. ``number`` counts the messages of collectives that each node has sent so far."""

    def __init__(self, gang: Member, kind: str, root: int | None, number: int) -> None:
        self._gang, self._kind, self._root, self._number = gang, kind, root, number
        self._own = gang.node_index
        self._folder = os.path.join(gang.folder, "values")

    def run(self, data: bytes) -> list[Any] | None:
        """Give ``data``, the value of this node; see :func:`gather`."""
        entry: dict[str, Any] = {}
        inline = data
        if len(data) > inline_bytes(self._gang.num_nodes):
            entry, inline = {"large": len(data)}, b""
            if self._own not in (0, self._root):
                entry.update(self._upload(data))
        entries, payload = self._exchange(self._number, entry, inline, self._root)
        lost = {node for node, one in enumerate(entries) if "lost" in one}
        sizes = {node: int(one["large"]) for node, one in enumerate(entries) if "large" in one}
        if self._root is None and not fits_all(sum(one["size"] for one in entries), len(entries)):
            # Node 0 alone has the payload, and passes it on with the large values.
            sizes = {node: int(one.get("large", one["size"])) for node, one in enumerate(entries) if node not in lost}
        small = _split(entries, payload)
        needing = [node for node in range(1, len(entries)) if self._needs(node) and node not in lost]
        receivers = [node for node in needing if sizes.keys() - {node}]
        try:
            self._check(entries)
            if not receivers:
                pieces = self._uploaded(sizes)
            else:
                sizes.pop(-1 if self._root is None else self._root, None)  # its own value is no use to the receiver
                self._distribute(receivers, sizes, {**small, self._own: data})
                pieces = self._packed(sizes)
            if not self._needs(self._own):
                return None
            return [
                LOST if node in lost else self._load(node, data, small, sizes, pieces) for node in range(len(entries))
            ]
        finally:
            for node in sizes:
                self._remove(self._file(node))
            if receivers:
                self._remove(self._file())

    def _needs(self, node: int) -> bool:
        return self._root in (None, node)

    def _file(self, node: int | None = None) -> str:
        """The path, on node 0, of what ``node`` has uploaded; without a node the file of all values, on each node."""
        return os.path.join(self._folder, f"{self._number}" if node is None else f"{self._number}-{node}")

    def _exchange(
        self, number: int, entry: dict[str, Any], data: bytes = b"", root: int | None = None
    ) -> tuple[list[dict[str, Any]], bytes]:
        """Give all nodes ``entry`` and get their entries; the small values of all go to ``root``, or to all nodes."""
        header, payload = self._gang._link.request("gather", data, seq=number, kind=self._kind, entry=entry, root=root)
        return header["entries"], payload

    def _check(self, entries: list[dict[str, Any]]) -> None:
        """Raises :class:`ValueTooStrange`, on every node, where an entry has an error."""
        for node, entry in enumerate(entries):
            if "error" in entry:
                raise ValueTooStrange(
                    f"{self._kind}: a large value did not get through on node {node}: {entry['error']}"
                )

    # -- the way to node 0 -------------------------------------------------------------------------------------------

    def _upload(self, data: bytes) -> dict[str, Any]:
        """Send ``data`` to node 0; the error, where that fails, as a part of this node's entry."""
        path = os.path.join(self._folder, f"upload-{self._number}")
        try:
            os.makedirs(self._folder, 0o700, exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)
            name = os.path.basename(self._file(self._own))
            return _error(self._gang._link.request("upload-value", name=name, path=path)[0].get("error"))
        except OSError as error:
            return _error(error)
        finally:
            self._remove(path)

    def _uploaded(self, sizes: dict[int, int]) -> Iterator[bytes]:
        """On node 0: what the others have uploaded, by node index."""
        for node in sizes:
            if node != self._own:
                with open(self._file(node), "rb") as file:
                    os.unlink(file.name)
                    data = file.read()
                yield data

    # -- the way from node 0 -----------------------------------------------------------------------------------------

    def _distribute(self, receivers: list[int], sizes: dict[int, int], known: Mapping[int, bytes]) -> None:
        """Bring the values of the nodes ``sizes`` from node 0 to ``receivers``, in one file; every node calls it.

        ``known`` are the values that this node has already. Raises :class:`ValueTooStrange` on every node where that
        fails.
        """
        link = self._gang._link
        entry: dict[str, Any] = {}
        if self._own in receivers:
            header, _ = link.request("serve-values", host=self._gang.nodes[self._own].address)
            entry = {"port": header["port"]} if "port" in header else _error(header["error"])
        entries, _ = self._exchange(next(self._gang._sequence), entry)
        self._check(entries)
        entry = {}
        if self._own == 0:
            present = [node for node in receivers if "lost" not in entries[node]]
            hops = [(node, self._gang.nodes[node].address, entries[node]["port"]) for node in present]
            try:
                self._pack(sizes, known)
                if hops:
                    header, _ = link.request("send-values", path=self._file(), name=f"{self._number}", hops=hops)
                    entry = _error(header.get("error"))
            except OSError as error:
                entry = _error(error)
        entries, _ = self._exchange(next(self._gang._sequence), entry)
        self._check(entries)

    def _pack(self, sizes: dict[int, int], known: Mapping[int, bytes]) -> None:
        """On node 0: make one file of the values of the nodes ``sizes``, by index: those ``known``, and uploads."""
        os.makedirs(self._folder, 0o700, exist_ok=True)
        if len(sizes) == 1 and not sizes.keys() & known.keys():
            os.rename(self._file(*sizes), self._file())
            return
        with open(os.open(self._file(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
            for node in sizes:
                if node in known:
                    target.write(known[node])
                    continue
                with open(self._file(node), "rb") as source:
                    os.unlink(source.name)
                    shutil.copyfileobj(source, target, 1 << 20)

    def _packed(self, sizes: dict[int, int]) -> Iterator[bytes]:
        """The values of the other nodes in the file that :meth:`_pack` made."""
        with open(self._file(), "rb") as file:
            os.unlink(file.name)
            for node, size in sizes.items():
                if node == self._own:
                    file.seek(size, os.SEEK_CUR)
                else:
                    yield file.read(size)

    def _load(
        self, node: int, own: bytes, small: Mapping[int, bytes], sizes: Mapping[int, int], large: Iterator[bytes]
    ) -> Any:
        data = own if node == self._own else next(large) if node in sizes else small[node]
        try:
            return pickle.loads(data)
        except Exception as error:  # pickle raises whatever the value's class raises
            raise ValueTooStrange(
                f"{self._kind}: the value of node {node} cannot be made of its pickle on node {self._own}: it raised "
                f"{type(error).__name__}: {error}. Its class has to be importable on every node, and be made by pickle."
            ) from error

    def _remove(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _split(entries: Sequence[dict[str, Any]], payload: bytes) -> dict[int, bytes]:
    """The values in the payload of a message, by node index; where there is no payload, none."""
    values, start = {}, 0
    for node, entry in enumerate(entries):
        if payload and "large" not in entry:
            values[node] = payload[start : start + entry["size"]]
        start += entry["size"]
    return values


def _error(error: object) -> dict[str, Any]:
    """The part of an entry that says what has gone wrong; an empty one where nothing has."""
    return {"error": str(error)[:_ERROR_LENGTH]} if error else {}

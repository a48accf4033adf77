"""A value of each node, given to all: how it travels, by the control connections or, where it is large, beside them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from typing import Any, Protocol

from ..exceptions import ValueTooStrange
from ..guard_client.link import Link

INLINE_TOTAL = 1 << 20
"""Bytes that one collective may put on the control connections, all nodes together; what is larger goes by bulk
streams.
"""


class Member(Protocol):
    """What a collective needs of the gang: who this node is, and its guard. ``current.gang`` has it."""

    @property
    def node_index(self) -> int: ...

    @property
    def num_nodes(self) -> int: ...

    @property
    def folder(self) -> str: ...

    @property
    def _link(self) -> Link: ...

    @property
    def _sequence(self) -> Iterator[int]: ...


def gather(gang: Member, kind: str, value: Any) -> list[Any]:
    """Everybody's values, by node index. ``kind`` is what the collective is called, as in "barrier()".

    Raises
    ------
    ValueTooStrange
        ``value`` cannot be pickled, or a large one did not get through.
    """
    try:
        data = pickle.dumps(value, protocol=5)
    except Exception as error:  # pickle raises whatever a __reduce__ raises
        raise ValueTooStrange(
            f"{kind}: a {type(value).__name__} cannot be sent to the other nodes, since it cannot be pickled ({error})."
        ) from error
    # Counted only now: a body that catches the error and gives another value is still with the others.
    number = next(gang._sequence)
    entry: dict[str, Any] = {}
    if len(data) > max(1024, INLINE_TOTAL // gang.num_nodes):
        entry = {"blob": f"{number}-{gang.node_index}"}
        _put(gang, entry["blob"], data)
        data = b""
    header, payload = gang._link.request("gather", data, seq=number, kind=kind, entry=entry)
    values, start = [], 0
    for item in header["entries"]:
        piece, start = payload[start : start + item["size"]], start + item["size"]
        values.append(pickle.loads(_get(gang, item["blob"]) if "blob" in item else piece))
    return values


def _put(gang: Member, name: str, data: bytes) -> None:
    path = os.path.join(gang.folder, f"put-{name}")
    with open(path, "wb") as file:
        file.write(data)
    _transfer(gang, "put", name, path)
    os.unlink(path)


def _get(gang: Member, name: str) -> bytes:
    path = os.path.join(gang.folder, f"get-{name}")
    _transfer(gang, "get", name, path)
    with open(path, "rb") as file:
        data = file.read()
    os.unlink(path)
    return data


def _transfer(gang: Member, direction: str, name: str, path: str) -> None:
    header, _ = gang._link.request(direction, name=name, path=path)
    if "error" in header:
        raise ValueTooStrange(f"A value of this collective did not get through: {header['error']}")

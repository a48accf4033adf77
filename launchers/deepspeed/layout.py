"""The nodes and slots of one call, as deepspeed's own options choose them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.attributes import whole_number
from ...core.exceptions import BadAttribute
from .options import Options


@dataclass(frozen=True)
class Layout:
    """The nodes that take part, in the order of their ranks, and the slots that they use; one rank for each slot."""

    nodes: tuple[int, ...]
    slots: tuple[tuple[int, ...], ...]

    def nprocs(self, num_nodes: int) -> tuple[int, ...]:
        """Ranks on each node of the gang, by node index."""
        counts = dict(zip(self.nodes, map(len, self.slots), strict=True))
        return tuple(counts.get(index, 0) for index in range(num_nodes))

    def hostfile_entries(self) -> list[tuple[str, int]]:
        """A name and a number of slots for each node that takes part."""
        return [(label(node), max(ids) + 1) for node, ids in zip(self.nodes, self.slots, strict=True)]

    def include(self) -> str:
        """The value of ``--include``; "" where every slot of the hostfile is used."""
        if all(ids == tuple(range(len(ids))) for ids in self.slots):
            return ""
        parts = [f"{label(n)}:{','.join(map(str, ids))}" for n, ids in zip(self.nodes, self.slots, strict=True)]
        return "@".join(parts)


def label(node: int) -> str:
    """A node's name in hostfiles: nodes of one machine share its address and its hostname."""
    return f"node{node}"


def layout(slots: Sequence[int], names: Sequence[Sequence[str]], options: Options) -> Layout:
    """The part of the gang that one call uses.

    Parameters
    ----------
    slots : sequence of int
        Of each node, by index.
    names : sequence of sequence of str
        What the user may call each node in ``include`` and ``exclude``; its index does as well.

    Raises
    ------
    BadAttribute
        The options leave nothing, name what is not there, or exclude each other.

    Example
    -------
    >>> layout([4, 4], [["a"], ["b"]], read_options({"include": "a@b:0,2"}))
    Layout(nodes=(0, 1), slots=((0, 1, 2, 3), (0, 2)))
    """
    values = options.values
    filters = [name for name in ("include", "exclude") if values.get(name)]
    counts = [name for name in ("num_nodes", "num_gpus") if name in values]
    if len(filters) > 1 or (filters and counts):
        given = ", ".join([*filters, *counts])
        raise BadAttribute(f"deepspeed_args has {given}, of which deepspeed takes only one kind. Leave the others out.")
    pool = {node: list(range(number)) for node, number in enumerate(slots)}
    if filters == ["include"]:
        chosen = _read_filter("include", str(values["include"]), pool, names)
        pool = {node: chosen[node] or pool[node] for node in pool if node in chosen}
    elif filters == ["exclude"]:
        for node, ids in _read_filter("exclude", str(values["exclude"]), pool, names).items():
            pool[node] = [slot for slot in pool[node] if ids and slot not in ids]
    if "num_nodes" in values:
        wanted = _count("num_nodes", values["num_nodes"])
        if wanted > len(slots):
            raise BadAttribute(f"deepspeed_args has num_nodes={wanted}, but this gang has {len(slots)}.")
        pool = {node: pool[node] for node in range(wanted)}
    if "num_gpus" in values:
        wanted = _count("num_gpus", values["num_gpus"])
        pool = {node: list(range(wanted)) for node in pool}
    used = {node: tuple(ids) for node, ids in pool.items() if ids}
    if not used:
        raise BadAttribute(f"deepspeed_args leave no slot to run on ({', '.join(filters)}).")
    return Layout(tuple(used), tuple(used.values()))


def _count(name: str, value: str | None) -> int:
    number = whole_number(value)
    if number is None or number < 1:
        raise BadAttribute(f"deepspeed_args has {name}={value}: it is a number, 1 or more.")
    return number


def _read_filter(
    option: str, text: str, pool: dict[int, list[int]], names: Sequence[Sequence[str]]
) -> dict[int, list[int]]:
    """Nodes and their slots, all of them where the list is empty: "node0@node1:0,2"."""
    found: dict[int, list[int]] = {}
    for part in text.split("@"):
        name, colon, ids = part.strip().partition(":")
        node = _find(option, name, names)
        slots = found.setdefault(node, [])
        for word in ids.split(",") if colon else ():
            slot = whole_number(word)
            if slot is None or slot not in pool[node]:
                raise BadAttribute(
                    f"deepspeed_args has {option}={text}, but node {node} has the slots 0 to {len(pool[node]) - 1}, "
                    f"and not {word!r}."
                )
            if slot not in slots:
                slots.append(slot)
        slots.sort()
    return found


def _find(option: str, name: str, names: Sequence[Sequence[str]]) -> int:
    for node, known in enumerate(names):
        if name.lower() in (str(node), *known):
            return node
    if name in ("127.0.0.1", "localhost"):
        return 0
    listed = ", ".join(own[0] for own in names)
    raise BadAttribute(f"deepspeed_args: {option} names {name!r}, and no node is called so. The nodes are {listed}.")

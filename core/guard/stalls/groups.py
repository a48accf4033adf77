"""Where the ranks of a gang stand, those that stand at the same place as one group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..text import indent

MOST_GROUPS = 40
"""That are shown with their stacks."""

MOST_IN_A_LINE = 6

MOST_RANGES = 8


def grouped(records: Mapping[int, Iterable[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The groups, the smallest first: where one rank stands elsewhere than all others, it is most often the cause.

    Parameters
    ----------
    records : mapping
        By node, what :mod:`.dumps` has of each process there.

    Returns
    -------
    list of dict
        ``place``, ``inner`` (the innermost frame, "" where that is the place), ``stack`` (text), ``nodes``, ``ranks``
        (numbers), and ``others`` (names of what has no number).
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for node, processes in sorted(records.items()):
        for record in processes:
            key = (record["place"], record["inner"])
            group = found.setdefault(
                key,
                {
                    "place": key[0],
                    "inner": key[1],
                    "stack": record["stack"],
                    "nodes": [],
                    "ranks": [],
                    "others": [],
                },
            )
            if node not in group["nodes"]:
                group["nodes"].append(node)
            if record["rank"] is None:
                group["others"].append(f"{record['title']} of node {node}")
            else:
                group["ranks"].append(record["rank"])
    for group in found.values():
        group["ranks"].sort()
    return sorted(found.values(), key=lambda group: (size(group), min(group["ranks"], default=1 << 30)))


def size(group: Mapping[str, Any]) -> int:
    """How many processes stand there."""
    return len(group["ranks"]) + len(group["others"])


def who(group: Mapping[str, Any]) -> str:
    """Its members: "rank 5", "7 ranks (0-4, 6, 7)"."""
    ranks, others = group["ranks"], group["others"]
    parts = []
    if len(ranks) == 1:
        parts.append(f"rank {ranks[0]}")
    elif ranks:
        parts.append(f"{len(ranks)} ranks ({ranges(ranks)})")
    if len(others) > 3:
        parts.append(f"{others[0]} and {len(others) - 1} more")
    else:
        parts += others
    return ", ".join(parts)


def ranges(numbers: list[int]) -> str:
    """ "0-4, 6, 7" for sorted numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = []
    for first, last in runs:
        texts += [f"{first}-{last}"] if last > first + 1 else [str(number) for number in range(first, last + 1)]
    more = len(texts) - MOST_RANGES
    return ", ".join(texts[:MOST_RANGES]) + (f" and {more} more" if more > 0 else "")


def line(groups: list[dict[str, Any]]) -> str:
    """All groups in one line: "rank 5 in load at data.py:12; 7 ranks (0-4, 6, 7) in all_reduce at train.py:31"."""
    parts = [f"{who(group)} {where(group)}" for group in groups[:MOST_IN_A_LINE]]
    more = len(groups) - MOST_IN_A_LINE
    return "; ".join(parts) + (f"; and {more} more places" if more > 0 else "")


def where(group: Mapping[str, Any]) -> str:
    """ "in all_reduce at train.py:31", or what is known of a process that is not Python."""
    return f"in {group['place']}" if " at " in group["place"] else str(group["place"])


def text(groups: list[dict[str, Any]], missing: Iterable[int] = ()) -> str:
    """All groups, each with the stack of one member, innermost frame first.

    Parameters
    ----------
    missing : iterable of int
        Nodes that have not sent theirs.
    """
    parts = []
    for group in groups[:MOST_GROUPS]:
        head = f"{who(group)} {where(group)}"
        parts.append(f"{head}:\n{indent(group['stack'])}" if group["stack"] else head)
    more = len(groups) - MOST_GROUPS
    if more > 0:
        parts.append(f"... and {more} more places")
    nodes = sorted(missing)
    if nodes:
        parts.append(f"Of node{'s' if len(nodes) > 1 else ''} {ranges(nodes)} nothing has come.")
    return "\n".join(parts)

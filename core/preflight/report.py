"""What node 0 says of the facts of all nodes: a table of software that differs, and a line for each thing missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

from .facts import SHM, Facts

MIB = 1 << 20

SMALL_SHM = 64 * MIB
"""What Docker and Kubernetes give a container by default; NCCL alone takes 32 MiB for some ranks."""

FEW_FILES = 1024
"""Open files: the soft limit that Linux gives by default. A DataLoader with workers, or Ray, needs some hundreds."""

LITTLE_ROOM = 256 * MIB
"""Free bytes for temporary files: Ray stores its logs there, torch the extensions that it builds."""

MORE_SHM = (
    "docker run --shm-size=8g, or @kubernetes(shared_memory=...) or @batch(shared_memory=...) on the step, in MiB"
)

_COLUMNS = 5
"""Of the table; of more kinds of nodes, the rare ones are only counted."""

_NAMED = 16
"""Nodes, or ranges of nodes, that one line names."""


def warnings_of(facts: Mapping[int, Facts], gpus: int | None, local: bool) -> list[str]:
    """Lines for the user: the table, where software differs, and a line with its remedy for each thing that lacks.

    Parameters
    ----------
    facts : mapping
        By node; those that have sent none are left out.
    gpus : int or None
        How many the step asks for on each node. In a local gang their distribution has its own notice.
    local : bool
        Whether the nodes are processes of one machine.
    """
    lines = _software(facts)
    if gpus and not local:
        fewer = {node: one for node, one in facts.items() if one.gpus < gpus}
        lines += _lack(
            fewer,
            lambda one: f"{one.gpus} of the {gpus} GPUs that the step asks for can be used",
            "Check that the image has NVIDIA's runtime, that the driver works (nvidia-smi), and CUDA_VISIBLE_DEVICES.",
        )
    lines += _lack(
        {node: one for node, one in facts.items() if one.ranks > 1 and one.shm <= SMALL_SHM},
        lambda one: f"{SHM} has {one.shm // MIB} MiB for {one.ranks} ranks",
        f"NCCL, DataLoader's workers and MPI need more: {MORE_SHM}.",
    )
    lines += _lack(
        {node: one for node, one in facts.items() if 0 <= one.room < LITTLE_ROOM},
        lambda one: f"the folder for temporary files has {one.room // MIB} MiB left",
        "Make room there, or set TMPDIR to another folder.",
    )
    return lines + _lack(
        {node: one for node, one in facts.items() if 0 <= one.files < FEW_FILES},
        lambda one: f"a process may open {one.files} files",
        f"Raise the limit to at least {FEW_FILES} (ulimit -n, or the container's --ulimit nofile).",
    )


def _lack(facts: Mapping[int, Facts], what: Callable[[Facts], str], remedy: str) -> list[str]:
    """One line for each different ``what``."""
    nodes: dict[str, list[int]] = {}
    for node, one in facts.items():
        nodes.setdefault(what(one), []).append(node)
    return [f"Preflight: on {named(where)}, {text}. {remedy}" for text, where in nodes.items()]


def _software(facts: Mapping[int, Facts]) -> list[str]:
    """A table of what has not the same version on all nodes: a column for each kind of node."""
    names = dict.fromkeys(name for one in facts.values() for name in one.versions)
    differing = [name for name in names if len({one.versions.get(name) for one in facts.values()}) > 1]
    if not differing:
        return []
    kinds: dict[tuple[str, ...], list[int]] = {}
    for node, one in facts.items():
        kinds.setdefault(tuple(one.versions.get(name, "none") for name in differing), []).append(node)
    most_first = sorted(kinds.items(), key=lambda kind: (-len(kind[1]), kind[1]))
    shown, left = most_first[:_COLUMNS], most_first[_COLUMNS:]
    columns = [["", *differing], *([named(nodes), *versions] for versions, nodes in shown)]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    ]
    if left:
        lines.append(f"... and {named(sorted(node for _, nodes in left for node in nodes))} have still others")
    return [
        "Preflight: the nodes do not have the same software. What works on one may fail, or differ, on another:",
        *(f"  {line}" for line in lines),
        "  Give all nodes one image, or the step @pypi or @conda.",
    ]


def named(nodes: list[int]) -> str:
    """ "node 3", "nodes 0, 2 to 5 and 9"; ``nodes`` are in order."""
    starts = [node for before, node in pairwise([-2, *nodes]) if node != before + 1]
    ranges = []
    for start, following in pairwise([*starts, nodes[-1] + 2]):
        last = max(node for node in nodes if node < following)
        ranges += (
            [str(start)] if last == start else [f"{start} to {last}"] if last > start + 1 else [f"{start}", f"{last}"]
        )
    if len(ranges) > _NAMED:
        ranges = [*ranges[:_NAMED], "more"]
    text = " and ".join(filter(None, [", ".join(ranges[:-1]), ranges[-1]]))
    return f"node {text}" if len(nodes) == 1 else f"nodes {text}"

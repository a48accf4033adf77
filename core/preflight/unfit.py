"""The nodes to leave out, by the facts of all nodes, where a spare node can take their place."""

from __future__ import annotations

from collections.abc import Mapping

from .facts import SHM, Facts
from .report import MIB, SMALL_SHM

OF_MACHINES = ("NVIDIA driver",)
"""Versions that differ among the machines of many clusters, and with which ranks train together all the same."""


def unfit_nodes(facts: Mapping[int, Facts], gpus: int | None, local: bool, most: int) -> dict[int, str]:
    """The nodes to leave out, and why: those with fewer GPUs than the step asks for, with other software than node 0
    and most nodes, or with too little shared memory. What node 0 has too is no reason, and where one reason is that of
    more nodes than can be left out, none is left out for it: the warning is all there is then.

    Parameters
    ----------
    facts : mapping
        By node. Empty where they are not known.
    gpus, local
        See :func:`.report.warnings_of`.
    most : int
        How many nodes may be left out.
    """
    found: dict[int, str] = {}
    if 0 not in facts:
        return found
    for reasons in (_too_few_gpus(facts, 0 if local else gpus or 0), _other_software(facts), _little_memory(facts)):
        more = {node: f"its preflight failed: {why}" for node, why in reasons.items() if node not in found}
        if 0 not in more and len(found) + len(more) <= most:
            found |= more
    return found


def _too_few_gpus(facts: Mapping[int, Facts], gpus: int) -> dict[int, str]:
    what = f"of the {gpus} GPUs that the step asks for can be used"
    return {node: f"{one.gpus} {what}" for node, one in facts.items() if one.gpus < gpus}


def _other_software(facts: Mapping[int, Facts]) -> dict[int, str]:
    """Where most nodes have what node 0 has, the others."""
    versions = {
        node: {name: version for name, version in one.versions.items() if name not in OF_MACHINES}
        for node, one in facts.items()
    }
    own = versions[0]
    others = {node: _difference(own, version) for node, version in versions.items() if version != own}
    return others if 2 * (len(facts) - len(others)) > len(facts) else {}


def _difference(own: Mapping[str, str], other: Mapping[str, str]) -> str:
    names = [name for name in {**own, **other} if own.get(name) != other.get(name)]
    theirs = " and ".join(f"{name} {other[name]}" if name in other else f"no {name}" for name in names)
    ours = " and ".join(own.get(name, f"no {name}") for name in names)
    return f"it has {theirs}, and node 0 has {ours}"


def _little_memory(facts: Mapping[int, Facts]) -> dict[int, str]:
    return {
        node: f"{SHM} has {one.shm // MIB} MiB for {one.ranks} ranks"
        for node, one in facts.items()
        if one.ranks > 1 and one.shm <= SMALL_SHM
    }

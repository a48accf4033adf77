"""One node of a gang, as all nodes know it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """One machine, or one local process, of the gang.

    ``address`` is how the other nodes reach it, ``cpus`` and ``gpus`` what its task may use. Of a node that has not
    joined, and without which the gang goes on, nothing is known: both names are "", and both numbers 0.
    """

    index: int
    address: str
    hostname: str
    cpus: int
    gpus: int

"""A spare node takes the place of a lost one in a job of Slurm, which goes on without it."""

from __future__ import annotations

import time
from collections.abc import Callable

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.frameworks.spares import flow, gone_on_after, losses, world
from support.requirements import require_packages

from ..workplace import RUN_S, result
from .place import SlurmPlace
from .place import slurm as slurm

pytestmark = pytest.mark.slow

Slurms = Callable[..., SlurmPlace]

HOLD = 5
"""The step at which the ranks wait until a host is lost."""


def test_a_spare_node_takes_the_place_of_a_lost_host(slurm: Slurms) -> None:
    require_packages("torch")
    place = slurm(3)
    hold = place.folder / f"hold-{HOLD}"
    hold.touch()
    run = place.run(flow("spares=1", 3, place.folder, "slurm", "cpu=1"))
    nodes = [place.node(0, f"step {HOLD} of rank 0 ", run)]
    nodes += [place.node(node, f"up {node} ", run, timeout=RUN_S) for node in (1, 2)]
    since = time.time()
    place.lose(nodes[1])
    place.node(0, "restart 1 of 1: node 1 ", run)
    hold.unlink()
    run.ok(RUN_S)
    said = "\n".join(node.output for node in nodes)
    assert "; node 2 takes its place" in said, said
    assert world(said, since) == [(0, 0, 2), (1, 2, 2)]
    assert sorted(losses(said)) == list(range(40))
    print(
        f"the ranks went on after {gone_on_after(said, since, [0, 2]):.1f} s; the job was over after "
        f"{time.time() - since:.1f} s"
    )
    assert result(run) == [0, 2]

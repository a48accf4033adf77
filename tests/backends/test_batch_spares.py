"""A spare node takes the place of a lost child of an AWS Batch job, which only its main node's end ends."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.frameworks.spares import flow, gone_on_after, losses, world
from support.requirements import require_packages

from .batch.place import BatchPlace
from .image import Image
from .workplace import RUN_S, result
from .workplace import image as image

pytestmark = pytest.mark.slow

HOLD = "/tmp/hold-5"
"""While it is there on node 0, the ranks wait at this step."""


def test_a_spare_node_takes_the_place_of_a_killed_child(tmp_path: Path, image: Image) -> None:
    require_packages(*BatchPlace.packages)
    with contextlib.ExitStack() as stack:
        place = BatchPlace(stack, tmp_path, image, 3)
        run = place.run(flow("spares=1", 3, "/tmp", "batch", "cpu=1"))
        nodes = [place.node(node, f"up {node} ", run) for node in range(3)]
        assert nodes[0].run(["touch", HOLD]) == 0  # the ranks import torch now
        place.node(0, "step 5 of rank 0 ", run)
        since = time.time()
        nodes[1].kill()
        place.node(0, "restart 1 of 1: node 1 ", run)
        assert nodes[0].run(["rm", HOLD]) == 0
        run.ok(RUN_S)
        said = "\n".join(node.output for node in nodes)
        assert "; node 2 takes its place" in said, said
        assert world(said, since) == [(0, 0, 2), (1, 2, 2)]
        assert sorted(losses(said)) == list(range(40))
        print(f"the ranks went on after {gone_on_after(said, since, [0, 2]):.1f} s")
        assert result(run) == [0, 2]

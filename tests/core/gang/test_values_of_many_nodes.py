"""Large values in a gang of some hundred nodes: everyone is served, and nothing is left on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.guard.many_nodes import ManyNodes

WORK = """
import os

def work(gang, order):
    size, me = order["size"], gang.node_index
    sent = gang.all_gather(me)[-1]
    if order["kind"] == "broadcast":
        got = gang.broadcast(os.urandom(16) * (size // 16) if me == 0 else None)
        right = len(got) == size and got[:16] == got[-16:]
    else:
        got = gang.all_gather(bytes([me % 251]) * size)
        right = got == [bytes([node % 251]) * size for node in range(gang.num_nodes)]
    folder = os.path.join(gang.folder, "values")
    left = os.listdir(folder) if os.path.isdir(folder) else []
    return {"right": right and sent == gang.num_nodes - 1, "left": left}
"""


@pytest.mark.big
def test_three_hundred_nodes_get_large_values(tmp_path: Path) -> None:
    work = tmp_path / "work.py"
    work.write_text(WORK)
    with ManyNodes(301, work) as nodes:
        # Along the chain, along the tree, through node 0 alone, and from more nodes than node 0 serves at once.
        calls = [("broadcast", 6 << 20), ("broadcast", 200_000), ("all_gather", 8_000), ("all_gather", 40_000)]
        for kind, size in calls:
            for node, reply in enumerate(nodes.call(kind=kind, size=size)):
                assert reply == {"right": True, "left": []}, (kind, size, node)

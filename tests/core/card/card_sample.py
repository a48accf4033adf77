"""Snapshots of gangs that never ran, for tests of the page: as many nodes as wanted, in any state."""

from __future__ import annotations

import math
import random
from typing import Any

from metaflow_extensions.gang.core.guard.card.series import MOMENTS, encoded

START = 1_700_000_000.0
SECONDS = 512.0

METRICS = (
    ("cpu", 100.0, 0.62),
    ("memory", 100.0, 0.41),
    ("gpu", 100.0, 0.93),
    ("network", 2e9, 0.7),
    ("disk", 1e8, 0.2),
)
"""Name, end of the scale, and the part of it that is used."""

SLOW_NODE = 17


def snapshot(nodes: int, ranks_per_node: int = 2, state: str = "running", **more: Any) -> dict[str, Any]:
    """What the guards of a training of some minutes know."""
    ranks = nodes * ranks_per_node
    return {
        "launcher": "@torchrun",
        "pathspec": "Digits/17/train/2",
        "attempt": 0,
        "state": state,
        "started": START,
        "now": START + SECONDS,
        "nodes": [{"index": index, "host": f"gang{index}", "at": _moments(index, state)} for index in range(nodes)],
        "ranks_in_all": ranks,
        "ranks_running": ranks,
        "ranks": [_rank(rank, ranks_per_node) for rank in range(min(ranks, 256))],
        "series": {
            "start": 8.0,
            "every": (SECONDS - 8.0) / MOMENTS,
            "values": {
                name: {"scale": scale, "nodes": [_course(node, scale * height, scale) for node in range(nodes)]}
                for name, scale, height in METRICS
            },
        },
        "curves": {"loss": _curve(ranks)},
        "failure": None,
        "stall": None,
        "launches": [{"what": "train.py", "argv": ["python", "train.py"], "environment": {"MASTER_PORT": "20113"}}],
        "settings": {"lost_host_timeout": "30 s"},
        "traces": None,
        "roles": [],
        "roles_in_all": 0,
        **more,
    }


def _moments(node: int, state: str) -> dict[str, float]:
    found = {"started": 0.1 * (node % 7), "met": 1.5, "joined": 6.0, "formed": 6.4, "ranks": 7.0, "output": 18.0}
    return {**found, "done": 505.0, "stored": 511.0} if state == "succeeded" else found


def _rank(rank: int, ranks_per_node: int) -> dict[str, Any]:
    line = f"epoch 7, step {4000 + rank}, loss 0.031, learning rate 0.0001"
    return {
        "rank": rank,
        "node": rank // ranks_per_node,
        "state": "running",
        "runs": True,
        "bad": False,
        "cpu": 800.0 + rank,
        "memory": 2.1e9,
        "silent": 0.5 + rank % 5,
        "line": line,
    }


def _course(node: int, height: float, scale: float) -> str:
    """Some seconds of loading, then steps that go on and on; now and then there is a checkpoint."""
    noise = random.Random(node)
    share = [0.1 if moment < 4 else 0.45 if moment % 24 == 23 else 1.0 for moment in range(MOMENTS)]
    slow = 0.35 if node == SLOW_NODE else 1.0
    return encoded([height * slow * part * noise.uniform(0.9, 1.05) for part in share], scale)


def _curve(ranks: int) -> dict[str, Any]:
    mean = [2.3 * math.exp(-point / 30) for point in range(100)]
    steps = [40 * point for point in range(100)]
    return {
        "steps": steps,
        "mean": mean,
        "low": [0.9 * y for y in mean],
        "high": [1.1 * y for y in mean],
        "count": ranks,
    }

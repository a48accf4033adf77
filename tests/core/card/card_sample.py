"""Snapshots of gangs that never ran, for tests of the page: as many nodes as wanted, in any state."""

from __future__ import annotations

import math
from typing import Any

from metaflow_extensions.gang.core.guard.card.series import MOMENTS, encoded

START = 1_700_000_000.0
SECONDS = 512.0


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
                name: {"scale": scale, "nodes": [_wave(node, scale) for node in range(nodes)]}
                for name, scale in (("cpu", 100.0), ("memory", 100.0), ("gpu", 100.0), ("network", 2e9), ("disk", 1e8))
            },
        },
        "curves": {"loss": _curve(ranks)},
        "failure": None,
        "stall": None,
        "launches": [{"what": "train.py", "argv": ["python", "train.py"], "environment": {"MASTER_PORT": "20113"}}],
        "settings": {"lost_host_timeout": "30 s"},
        "traces": [],
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
        "bad": False,
        "cpu": 800.0 + rank,
        "memory": 2.1e9,
        "silent": 0.5 + rank % 5,
        "line": line,
    }


def _wave(node: int, scale: float) -> str:
    return encoded([scale * (0.55 + 0.4 * math.sin(moment / 9 + node)) for moment in range(MOMENTS)], scale)


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

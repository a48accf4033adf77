"""Gangs in the states that the card's pictures show and that no test has the machines for: 64 nodes, a stall."""

from __future__ import annotations

from typing import Any

from card_sample import SECONDS, START, snapshot

from metaflow_extensions.gang.core.guard.card.snapshot import shown_gpus

STACKS = """\
7 ranks in all_reduce
  train.py:31 in train_step
  torch/distributed/distributed_c10d.py:2806 in all_reduce

rank 5 in load_shard
  data.py:12 in load_shard
  data.py:40 in __iter__
  train.py:27 in train_step"""


def many() -> dict[str, Any]:
    """64 nodes with eight ranks each, of which one is slow."""
    gpus = [_gpu(node, gpu) for node in range(64) for gpu in range(8)]
    shown = snapshot(64, 8, gpus=shown_gpus(gpus), gpus_in_all=len(gpus))
    shown["curves"]["tokens per second"] = _rising(512)
    return shown


def stalled() -> dict[str, Any]:
    """Eight ranks, of which seven wait for one."""
    title = "No rank has made progress for 5 minutes."
    shown = snapshot(2, 4, state="stalled", stall={"title": title, "text": STACKS})
    for rank in shown["ranks"]:
        rank.update(silent=300.0 + rank["rank"] % 3, cpu=500.0)
    return shown


def failed() -> dict[str, Any]:
    """A rank that the kernel has killed, on node 1."""
    title = "Rank 3 on node 1 (gang1) was killed by SIGKILL: the kernel ended it, for its node had no memory left."
    text = "The last lines of its output:\n  epoch 7, step 4003, loss 0.031, learning rate 0.0001"
    shown = snapshot(2, 2, state="failed", failure={"title": title, "text": text, "when": START + SECONDS})
    for node in shown["nodes"]:
        node["at"]["failed"] = SECONDS - 1.0
    for rank in shown["ranks"]:
        rank.update(state="ended", silent=None)
    shown["ranks"][3].update(state="failed", bad=True)
    shown["traces"] = traces(4)
    return shown


def traces(count: int) -> dict[str, Any]:
    """Those of as many ranks, two on each node, in a local datastore."""
    where = "/home/me/.metaflow/mf.gang.traces/Digits/17/train/2/0"
    files = [
        {
            "node": rank // 2,
            "rank": rank,
            "bytes": 31 << 20,
            "where": f"{where}/{rank // 2}/gang_{rank}.17{rank:017d}.pt.trace.json",
        }
        for rank in range(count)
    ]
    left_out = "Node 1: Not stored: 3 traces of torch's profiler, 411.0 MiB. A node stores its newest 32."
    return {"files": files, "in_all": count, "left_out": [left_out]}


def _gpu(node: int, gpu: int) -> dict[str, Any]:
    errors = "Xid 79" if (node, gpu) == (3, 5) else ""
    return {
        "node": node, "gpu": gpu, "util": 0 if errors else 97 - gpu, "memory": 68e9, "total": 85e9,
        "power": 61.0 if errors else 640.0 + gpu, "errors": errors,
    }  # fmt: skip


def _rising(ranks: int) -> dict[str, Any]:
    mean = [41_000.0 - 900.0 / (1 + point) * 30 for point in range(100)]
    low, high = [0.93 * value for value in mean], [1.02 * value for value in mean]
    return {"steps": [40 * point for point in range(100)], "mean": mean, "low": low, "high": high, "count": ranks}


STATES = {"running": lambda: snapshot(4), "many": many, "stalled": stalled, "failed": failed}

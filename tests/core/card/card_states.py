"""Gangs in the states that the card's pictures show and that no test has the machines for: 64 nodes, a stall."""

from __future__ import annotations

from typing import Any

from card_sample import SECONDS, START, snapshot

from metaflow_extensions.gang.core.guard.card.snapshot import shown_gpus
from metaflow_extensions.gang.core.guard.node_roles import NodeRoles, without_ranks

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


def replaced() -> dict[str, Any]:
    """Eight nodes: one was lost, the ranks of another one failed twice, spare ones took their places, and one waits."""
    reset = "the connection from it to node 0 was lost (reset): its container ran out of memory, its host was preempted"
    shown = snapshot(8)
    roles = NodeRoles()
    roles.world((0, 1, 2, 3, 4), (5, 6, 7), START + 6.4)
    roles.leave_out(2, f"lost: {reset}", START + 200.0)
    roles.world((0, 1, 5, 3, 4), (6, 7), START + 201.0)
    roles.leave_out(4, "its ranks failed first 2 times", START + 300.0)
    roles.world((0, 1, 5, 3, 6), (7,), START + 300.0)
    for node, more in without_ranks(roles, START).items():
        shown["nodes"][node].update(more)
    for node, begun in ((5, 203.0), (6, 302.0), (7, None)):
        at = shown["nodes"][node]["at"]
        del at["ranks"], at["output"]
        if begun:
            at.update(ranks=begun, output=begun + 9.0)
    shown["ranks"] = [rank for rank in shown["ranks"] if rank["node"] != 7]
    for rank in shown["ranks"]:
        if rank["node"] in (2, 4):
            rank.update(state="left out", runs=False, silent=None)
    lines = [
        f"restart 1 of 5: node 2 (gang2) was lost: {reset}; node 5 takes its place",
        "restart 2 of 5: rank 8 on node 4 (gang4) was killed by SIGKILL (out of memory?)",
        "restart 3 of 5: rank 8 on node 4 (gang4) was killed by SIGKILL (out of memory?); node 4 is left out, since "
        "its ranks failed first 2 times; node 6 takes its place",
    ]
    shown["restarts"] = [{"line": line, "at": START + at} for line, at in zip(lines, (201, 250, 300), strict=True)]
    return {**shown, "roles": roles.records(), "roles_in_all": len(roles), "ranks_in_all": 10, "ranks_running": 10}


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


STATES = {"running": lambda: snapshot(4), "many": many, "stalled": stalled, "failed": failed, "replaced": replaced}

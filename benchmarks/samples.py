"""What samples cost: the guard's CPU for those of its own node, and node 0's for those of all nodes.

    python benchmarks/samples.py [RANKS [SECONDS]]

The first figure is measured on a real loop that samples RANKS (8) sleeping processes every 2 s for SECONDS (60),
against a loop that does nothing; it may be 0.5 % of a core. The second is the time that node 0 needs to authenticate,
decode, check and keep one node's sample, times the samples that 256 and 1,024 nodes send; it may be 3 % and 2 % of a
core.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import metaflow  # noqa: F401 - before any import of the extension

from metaflow_extensions.gang.core.guard.channel.proof import Seal
from metaflow_extensions.gang.core.guard.coordinator.messages import Checker
from metaflow_extensions.gang.core.guard.loop.event_loop import Loop
from metaflow_extensions.gang.core.guard.loop.framing import Decoder, encode
from metaflow_extensions.gang.core.guard.samples.sampler import Sampler, send_every

LIMITS = {256: 0.03, 1024: 0.02}


def cpu_of(seconds: float, pids: list[int]) -> float:
    """Seconds of CPU that a loop needs in so long that samples ``pids``; none are sampled where there are none."""

    class Rank:
        alive, title = True, "rank"

        def __init__(self, pid: int) -> None:
            self.pid, self.rank = pid, pid

        def last_line(self) -> tuple[str, float]:
            return "x" * 200, time.time()

    loop = Loop()
    messages: list[dict[str, Any]] = []
    sampler = Sampler(loop, "", lambda: map(Rank, pids), lambda message: messages.append(message))
    if pids:
        sampler.start()
        sampler.send_to_node_0(2)
    loop.call_later(seconds, loop.stop)
    before = time.process_time()
    loop.run()
    used = time.process_time() - before
    loop.close()
    assert not pids or len(messages) >= seconds / 2 - 3
    return used


def a_message(ranks: int) -> dict[str, Any]:
    rank = {"rank": 1, "title": "rank 1", "state": "R", "cpu_s": 1234.5, "rss": 1 << 30, "line": "x" * 200}
    gpu = {"util": 97, "memory": 1 << 35, "total": 1 << 36, "power": 312.5, "ecc": 0, "xid": None}
    node = {"at": 1.7e9, "cpu": 7.9, "memory": 1 << 35, "limit": 1 << 37, "rx": 1e9, "tx": 1e9, "read": 0, "written": 0}
    sample = {**node, "gpus": [gpu] * ranks, "ranks": [{**rank, "line_at": 1.7e9}] * ranks}
    return {"op": "sample", "sample": sample}


def hub_s(ranks: int) -> float:
    """Seconds of CPU that node 0 needs for one node's sample."""
    frame = encode(a_message(ranks))
    seal, checker, decoder = Seal(b"k" * 32), Checker(1024), Decoder()
    kept: dict[int, Any] = {}
    before = time.process_time()
    for node in range(1000):
        seal.mac(frame)
        for header, payload in decoder.feed(frame):
            checker.check(header, payload)
            kept[node] = header["sample"]
    return (time.process_time() - before) / 1000


def main() -> int:
    ranks = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    processes = [subprocess.Popen(["sleep", "1000"]) for _ in range(ranks)]
    try:
        with_them = cpu_of(seconds, [process.pid for process in processes]) / seconds
        without = cpu_of(seconds / 4, []) / (seconds / 4)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    failed = with_them - without > 0.005
    print(f"guard, {ranks} ranks: {100 * (with_them - without):.3f} % of a core (at most 0.5 %)")
    one = hub_s(ranks)
    for nodes, limit in LIMITS.items():
        share = one * nodes / send_every(nodes, ranks)
        failed |= share > limit
        print(f"hub, {nodes} nodes of {ranks} ranks: {100 * share:.2f} % of a core (at most {100 * limit:g} %)")
    print(f"hub, one sample: {1e6 * one:.0f} us, {len(encode(a_message(ranks)))} bytes")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

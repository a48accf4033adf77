"""What samples cost: the guard's CPU for those of its own node, and node 0's for those of all nodes.

    python benchmarks/samples.py [--ranks RANKS] [--seconds SECONDS] [--nodes NODES ...]

The first figure is measured on a real loop that samples RANKS (8) sleeping processes every 2 s for SECONDS (60),
sends these to node 0 and writes the metrics file, against a loop that does nothing; it may be 0.5 % of a core.

Then, for each of NODES (256), the hub of node 0 runs in a process of its own, and all other nodes are connections of
one other process, which send samples of RANKS ranks as often as such nodes do, and answer the hub's pings. Measured is
the CPU time of the hub's process from the moment when all have joined, with samples and without. With samples it may be
3 % of a core. No Metaflow task and no guard of another node runs.

The last figures are computed: the time that node 0 needs to authenticate, decode, check and keep one sample, times the
samples that 256 and 1,024 nodes send in a second; it may be 3 % and 2 % of a core.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import metaflow  # noqa: F401 - before any import of the extension

from metaflow_extensions.gang.core.guard.channel.connect import ConnectError, connect
from metaflow_extensions.gang.core.guard.channel.connection import Connection, Identity
from metaflow_extensions.gang.core.guard.channel.proof import Seal
from metaflow_extensions.gang.core.guard.coordinator.messages import Checker
from metaflow_extensions.gang.core.guard.export.metrics_file import MetricsFile
from metaflow_extensions.gang.core.guard.export.points import of_sample
from metaflow_extensions.gang.core.guard.hub_link.local_hub_link import LocalHubLink
from metaflow_extensions.gang.core.guard.loop.event_loop import Loop
from metaflow_extensions.gang.core.guard.loop.framing import Decoder, encode
from metaflow_extensions.gang.core.guard.samples.sampler import Sampler, send_every

LIMITS = {256: 0.03, 1024: 0.02}

HUB_LIMIT = 0.03

GANG = ("Benchmark", "1", "join", "1", 0)

TIMEOUT_S = 120.0
"""For all nodes to join."""


def cpu_of(seconds: float, pids: list[int], folder: str = "") -> float:
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
        file = MetricsFile(os.path.join(folder, "gang.prom"), {"metaflow.flow": "Benchmark"}, print)
        sampler.on_sample = lambda sample: file.write(of_sample(sample, 8))
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


def hub_part(nodes: int, seconds: float, has_samples: bool) -> None:
    """Node 0: print where it listens, and its CPU time from the moment when all have joined."""
    loop = Loop()
    begun = [0.0]

    def end() -> None:
        print(time.process_time() - begun[0], len(link.samples()), flush=True)
        os._exit(0)

    def on_message(header: dict[str, Any], payload: bytes) -> None:
        if header["op"] == "roster":
            begun[0] = time.process_time()
            loop.call_later(seconds, end)
            if has_samples:
                link.send({"op": "watch-samples"})
        elif header["op"] == "stop":
            os._exit(1)

    link = LocalHubLink(loop, "", print, on_message, nodes, TIMEOUT_S, list(GANG), "127.0.0.1")
    print(link.port, link.secret.hex(), flush=True)
    link.join({"hostname": "node-0", "cpus": 96, "gpus": 8, "address": link.address, "ring_port": 1})
    loop.run()


def members_part(nodes: int, ranks: int, port: int, secret: bytes) -> None:
    """All other nodes: join, answer pings, and send samples once the hub has asked for them."""
    loop, message = Loop(), a_message(ranks)
    interval = send_every(nodes, ranks)

    def send(connection: Connection) -> None:
        connection.send({**message, "sample": {**message["sample"], "at": time.time()}})
        loop.call_later(interval, lambda: send(connection))

    def on_frame(connection: Connection, header: dict[str, Any], payload: bytes) -> None:
        if header["op"] == "ping":
            connection.send({**header, "op": "alive"})
        elif header["op"] == "watch-samples":
            loop.call_later(interval * connection.node / nodes, lambda: send(connection))

    def on_connection(node: int, connection: Connection) -> None:
        connection.node = node
        connection.on_frame = on_frame
        connection.on_close = lambda connection, reason: loop.stop()

    def on_error(error: ConnectError) -> None:
        raise SystemExit(str(error))

    for node in range(1, nodes):
        info = {"hostname": f"node-{node}", "cpus": 96, "gpus": 8, "ring_port": 1}
        joined = lambda connection, node=node: on_connection(node, connection)  # noqa: E731
        connect(loop, "127.0.0.1", port, secret, Identity(*GANG), "member", node, info, joined, on_error, TIMEOUT_S)
    loop.run()


def hub_cpu(nodes: int, ranks: int, seconds: float, has_samples: bool) -> float:
    """Part of a core that the hub of so many nodes uses, its pings included."""

    def start(*arguments: object) -> subprocess.Popen[str]:
        argv = [sys.executable, __file__, "--part", *map(str, arguments)]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    hub = start("hub", nodes, seconds, int(has_samples))
    assert hub.stdout is not None
    port, secret = hub.stdout.readline().split()
    members = start("members", nodes, ranks, port, secret)
    try:
        used, known = hub.communicate(timeout=seconds + 2 * TIMEOUT_S)[0].split()[-2:]
    finally:
        members.kill()
        members.wait()
        hub.kill()
        hub.wait()
    assert not has_samples or seconds < 1.5 * send_every(nodes, ranks) or int(known) == nodes - 1
    return float(used) / seconds


def main() -> int:
    if sys.argv[1:2] == ["--part"]:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        part, nodes, *more = sys.argv[2:]
        if part == "hub":
            hub_part(int(nodes), float(more[0]), bool(int(more[1])))
        else:
            members_part(int(nodes), int(more[0]), int(more[1]), bytes.fromhex(more[2]))
        return 0
    parser = argparse.ArgumentParser(description="What samples cost.")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--nodes", type=int, nargs="*", default=[256])
    given = parser.parse_args()
    ranks, seconds = given.ranks, given.seconds
    processes = [subprocess.Popen(["sleep", "1000"]) for _ in range(ranks)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            with_them = cpu_of(seconds, [process.pid for process in processes], folder) / seconds
        without = cpu_of(seconds / 4, []) / (seconds / 4)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    failed = with_them - without > 0.005
    print(f"guard, {ranks} ranks: {100 * (with_them - without):.3f} % of a core (at most 0.5 %)")
    for nodes in given.nodes:
        used, idle = (hub_cpu(nodes, ranks, seconds, has_samples) for has_samples in (True, False))
        failed |= used > HUB_LIMIT
        print(
            f"hub, {nodes} nodes of {ranks} ranks: {100 * used:.2f} % of a core (at most {100 * HUB_LIMIT:g} %), "
            f"without samples {100 * idle:.2f} %"
        )
    one = hub_s(ranks)
    for nodes, limit in LIMITS.items():
        share = one * nodes / send_every(nodes, ranks)
        failed |= share > limit
        print(f"hub, computed for {nodes} nodes: {100 * share:.2f} % of a core (at most {100 * limit:g} %)")
    print(f"hub, one sample: {1e6 * one:.0f} us, {len(encode(a_message(ranks)))} bytes")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Large values of collectives: `broadcast()` to 2, 8 and 32 nodes against one, to 300 nodes, and small values' latency.

    sudo python benchmarks/values.py [--rate 16] [--runs 3] [--mib 64]
    python benchmarks/values.py --no-hosts

Each node has its real guard; its task is a process that makes the same calls as a step's body. Where the nodes have
hosts (network namespaces of this machine; Linux, root, iproute2), each one's link is limited to that many Mbit/s each
way, so that the network is what takes time, as it is where each node has processors of its own. The limit is a ratio of
1.5 to the time to one node. On the loopback device, without a limit, the processors of this one machine do the work of
all nodes: the processor time by node and MiB says what one needs. Exits with 1 where the limit is not kept, where a
node other than 0 receives returns of functions, or where something is left on disk.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import resource
import statistics
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from support.guard.many_nodes import ManyNodes
from support.hosts import Hosts

from metaflow_extensions.gang.core.calls.returns import collect
from metaflow_extensions.gang.core.ranks.functions import FunctionCall

HERE = Path(__file__).resolve()
LIMIT = 1.5
RECEIVERS = (2, 8, 32)
CLIENTS, CLIENT_MIB = 300, 20
RETURN_NODES, RETURN_MIB = 6, 20
LATENCY_NODES = (64, 256)
LATENCY_KIB = (1, 8, 64, 512, 2048)


# -- on each node ------------------------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """Of a process, and of this one."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    with open(f"/proc/{pid}/stat") as stat:
        ticks = sum(map(int, stat.read().rpartition(")")[2].split()[11:13]))
    return own.ru_utime + own.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def bytes_on_disk(folder: str, guard: int) -> int:
    """Below the folder of values, and of files that are removed but still open in the guard."""
    left = 0
    for where, _, names in os.walk(os.path.join(folder, "values")):
        left += sum(os.stat(os.path.join(where, name)).st_size for name in names)
    for entry in os.scandir(f"/proc/{guard}/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(entry.path)
            if target.startswith(folder) and target.endswith(" (deleted)"):
                left += os.stat(entry.path).st_size
    return left


def bytes_received() -> int:
    """By this node's network, headers and acknowledgements too; the loopback device is not counted."""
    with open("/proc/self/net/dev") as devices:
        fields = [line.partition(":") for line in list(devices)[2:]]
    return sum(int(rest.split()[0]) for name, _, rest in fields if name.strip() != "lo")


class Answers:
    """Counts the bytes of payload that this node's guard answers to its task."""

    def __init__(self, link: Any) -> None:
        self._request, self.bytes = link.request, 0
        link.request = self.request

    def request(self, op: str, payload: bytes = b"", **fields: Any) -> Any:
        header, answer = self._request(op, payload, **fields)
        self.bytes += len(answer)
        return header, answer


def work(gang: Any, order: dict[str, Any]) -> dict[str, Any]:
    """What ``ManyNodes`` has each node do: one collective call, measured."""
    value = os.urandom(order["size"]) if gang.is_control or order["kind"] == "returns" else b""
    checksum = gang.broadcast(zlib.crc32(value))
    guard, real = gang._link.guard_pid, gang._link.request
    if order["kind"] == "returns":
        call = FunctionCall("", os.path.join(gang.folder, "call"), "train")
        with open(f"{call.path}.return.{gang.node_index}", "wb") as file:
            pickle.dump(value, file)
    gang.barrier()
    answers = Answers(gang._link)
    received, cpu, begun = bytes_received(), cpu_seconds(guard), time.monotonic()
    if order["kind"] == "broadcast":
        right = zlib.crc32(gang.broadcast(value if gang.is_control else None)) == checksum
    elif order["kind"] == "returns":
        returned = collect(gang, call, [1] * gang.num_nodes, RuntimeError)
        right = len(returned) == (gang.num_nodes if gang.is_control else 1) and value in returned
    else:
        gathered = gang.all_gather(value or bytes(order["size"]))
        right = zlib.crc32(gathered[0]) == checksum and all(len(one) == order["size"] for one in gathered)
    ended = time.monotonic()
    gang._link.request = real
    return {
        "begun": begun,
        "ended": ended,
        "right": right,
        "cpu": cpu_seconds(guard) - cpu,
        "answered": answers.bytes,
        "wire": bytes_received() - received,
        "left": bytes_on_disk(gang.folder, guard),
    }


# -- measuring ---------------------------------------------------------------------------------------------------------


class Bench:
    """Prints each figure, and keeps whether all was well."""

    def __init__(self, runs: int) -> None:
        self.runs = runs
        self.well = True

    def measure(self, nodes: ManyNodes, kind: str, size: int) -> tuple[float, list[dict[str, Any]]]:
        """Seconds from the first node's call to the last node's return, and what each node says."""
        replies = nodes.call(kind=kind, size=size)
        self.check(all(reply["right"] for reply in replies), f"{kind} of {size} bytes: a node has another value")
        left = sum(reply["left"] for reply in replies)
        self.check(left == 0, f"{kind} of {size} bytes: {left} bytes are left on disk")
        return max(one["ended"] for one in replies) - min(one["begun"] for one in replies), replies

    def check(self, well: bool, otherwise: str) -> None:
        if not well:
            print(f"NOT KEPT: {otherwise}", flush=True)
            self.well = False

    def broadcasts(self, mib: int, hosts: Any, rate: int) -> None:
        """To 2, 8 and 32 nodes in turn with one."""
        where = f"{rate} Mbit/s for each host" if hosts else "the loopback device"
        print(f"\nbroadcast() of {mib} MiB, {where}; seconds from the first call to the last return")
        with contextlib.ExitStack() as stack:
            gangs = [stack.enter_context(ManyNodes(count + 1, HERE, hosts)) for count in (1, *RECEIVERS)]
            rows = []
            for _ in range(self.runs):
                row = []
                for nodes in gangs:
                    seconds, replies = self.measure(nodes, "broadcast", mib << 20)
                    row.append((seconds, sum(reply["cpu"] for reply in replies) / len(replies) / mib))
                rows.append(row)
                took = [f"to {nodes.count - 1}: {seconds:.2f}" for nodes, (seconds, _) in zip(gangs, row, strict=True)]
                print("   ".join(took), flush=True)
        print("nodes   best      median    ratio of the medians   processor time by node and MiB")
        ones = [row[0][0] for row in rows]
        for at, count in enumerate((1, *RECEIVERS)):
            times = [row[at][0] for row in rows]
            ratio = statistics.median(times) / statistics.median(ones)
            cpu = statistics.median(row[at][1] for row in rows)
            middle = statistics.median(times)
            print(f"{count:5d} {min(times):8.2f} s {middle:8.2f} s {ratio:11.2f} {cpu * 1000:22.1f} ms")
            if hosts:
                self.check(ratio <= LIMIT, f"the ratio to {count} nodes is {ratio:.2f}, its limit {LIMIT}")

    def returns(self, hosts: Any) -> None:
        """Functions' returns: what reaches the nodes other than 0."""
        with ManyNodes(RETURN_NODES, HERE, hosts) as nodes:
            seconds, replies = self.measure(nodes, "returns", RETURN_MIB << 20)
        got = sum(reply["answered"] for reply in replies[1:])
        print(f"\nreturns of {RETURN_MIB} MiB of {RETURN_NODES} nodes: {seconds:.2f} s")
        print(f"bytes of values that the other nodes got: {got}")
        self.check(got == 0, "a node other than 0 gets returns of functions")
        if hosts:
            wire = max(reply["wire"] for reply in replies[1:])
            print(f"all that one of them received, acknowledgements and control messages too: {wire / 1024:.0f} KiB")
            self.check(wire < (RETURN_MIB << 20) / 10, "a node other than 0 receives returns of functions")

    def clients(self) -> None:
        """A broadcast to 300 nodes, and 300 nodes that each give a large value."""
        with ManyNodes(CLIENTS + 1, HERE) as nodes:
            for kind, mib in (("broadcast", CLIENT_MIB), ("all_gather", 0.0625)):
                seconds, replies = self.measure(nodes, kind, int(mib * (1 << 20)))
                size = f"{mib:g} MiB" if mib >= 1 else f"{mib * 1024:g} KiB each"
                print(f"\n{kind} of {size}, {CLIENTS} nodes beside node 0: {len(replies) - 1} served, {seconds:.1f} s")

    def latency(self) -> None:
        """Small values, to many nodes."""
        print("\nsmall values of many nodes: best, median, processor time of a node")
        for count in LATENCY_NODES:
            with ManyNodes(count, HERE) as nodes:
                for kind, kibs in (("broadcast", LATENCY_KIB), ("all_gather", (1, 8))):
                    for kib in kibs:
                        runs = [self.measure(nodes, kind, kib << 10) for _ in range(self.runs + 1)][1:]
                        times = [seconds for seconds, _ in runs]
                        cpu = min(sum(reply["cpu"] for reply in replies) for _, replies in runs) / count
                        print(
                            f"{count:4d} nodes, {kind:10s} {kib:5d} KiB: {min(times):.3f} s  "
                            f"{statistics.median(times):.3f} s   {cpu * 1000:.1f} ms",
                            flush=True,
                        )


@contextlib.contextmanager
def limited_hosts(wanted: bool, rate: int) -> Iterator[Any]:
    if not wanted:
        yield None
        return
    with Hosts(max(RECEIVERS) + 1, rate=rate) as hosts:
        yield [hosts[index] for index in range(len(hosts))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=64, help="size of the value (64)")
    parser.add_argument("--rate", type=int, default=16, help="Mbit/s of each host's link (16)")
    parser.add_argument("--runs", type=int, default=3, help="runs, of which the best and the median are printed (3)")
    parser.add_argument("--no-hosts", action="store_true", help="the loopback device only; needs no root")
    parser.add_argument("parts", nargs="*", help="broadcasts, loopback, returns, clients, latency (all)")
    options = parser.parse_args()
    parts = options.parts or ["broadcasts", "loopback", "returns", "clients", "latency"]
    bench = Bench(options.runs)
    if not options.no_hosts and {"broadcasts", "returns"} & set(parts):
        with limited_hosts(True, options.rate) as hosts:
            if "broadcasts" in parts:
                bench.broadcasts(options.mib, hosts, options.rate)
            if "returns" in parts:
                bench.returns(hosts)
    elif "returns" in parts:
        bench.returns(None)
    if "loopback" in parts:
        bench.broadcasts(options.mib, None, 0)
    if "clients" in parts:
        bench.clients()
    if "latency" in parts:
        bench.latency()
    if not bench.well:
        sys.exit("Not all of it is as it should be.")


if __name__ == "__main__":
    main()

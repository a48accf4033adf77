"""How long it takes that many members to join a gang over the channel, and how much memory that takes.

    python benchmarks/channel.py [MEMBERS ...]        (2, 64 and 1024 where none are given)

The acceptor has a process of its own, as node 0's guard, and all members are in one other process, each with a socket
and a handshake of its own. Measured is the time from the members' first step until each has received the full roster of
nodes, sent to it when the last has joined, and has checked its MAC; the memory is each process's peak. The roster is
the same for all, and is unpacked once: each member of a gang does that on a processor of its own, and here a single one
would do it thousands of times, one after the other.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "core"))

from guard.channel import connection
from guard.channel.accept import Acceptor
from guard.channel.connect import ConnectError, connect
from guard.channel.connection import Connection, Identity, send_to_all
from guard.loop.event_loop import Loop

GANG = Identity("Benchmark", "1", "join", "1", 0)
TIMEOUT_S = 120.0
AT_ONCE = 64


def read_secret() -> bytes:
    return bytes.fromhex(sys.stdin.readline())


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def more_files() -> None:
    """1,024 sockets are more than the usual limit of one process."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def unpack_once() -> None:
    """Unpack a roster that has come before from memory."""
    unpack, known = connection._unpacked, {}

    def unpacked(data: bytes) -> dict[str, object]:
        if data not in known:
            known[data] = unpack(data)
        return known[data]

    connection._unpacked = unpacked


def accept(count: int) -> None:
    """Node 0: take ``count`` members, send each the roster, see each off."""
    more_files()
    loop = Loop()
    members: list[Connection] = []
    gone: list[str] = []

    def on_close(connection: Connection, reason: str) -> None:
        gone.append(reason)
        if len(gone) == count:
            loop.stop()

    def on_connection(connection: Connection) -> None:
        connection.on_close = on_close
        members.append(connection)
        if len(members) == count:
            roster = [{"index": member.node, "address": member.address, **member.info} for member in members]
            send_to_all(members, {"roster": roster})

    acceptor = Acceptor(loop, "127.0.0.1", read_secret(), GANG, on_connection)
    print(acceptor.port, flush=True)
    loop.call_later(TIMEOUT_S, loop.stop)
    loop.run()
    if len(gone) < count or any(gone):
        raise SystemExit(f"{len(members)} of {count} members joined, {gone.count('')} ended in order")
    print(peak_mb(), flush=True)


def join(count: int, port: int) -> None:
    """All members: join, wait for the roster, say goodbye."""
    more_files()
    loop, secret = Loop(), read_secret()
    unpack_once()
    rosters = 0
    errors: list[ConnectError] = []

    def on_frame(connection: Connection, header: dict[str, object], payload: bytes) -> None:
        nonlocal rosters
        roster = header["roster"]
        assert isinstance(roster, list) and len(roster) == count
        rosters += 1
        if rosters == count:
            print(time.monotonic() - begun, flush=True)
        connection.close(then=loop.stop if rosters == count else None)

    def on_connection(connection: Connection) -> None:
        connection.on_frame = on_frame

    def on_error(error: ConnectError) -> None:
        errors.append(error)
        loop.stop()

    def start(first: int) -> None:
        """Some members, and the next ones when these have had a turn, as each would have on its own processor."""
        for node in range(first, min(first + AT_ONCE, count + 1)):
            info = {"hostname": f"node-{node}", "cpus": 96, "gpus": 8}
            connect(loop, "127.0.0.1", port, secret, GANG, "member", node, info, on_connection, on_error, TIMEOUT_S)
        if first + AT_ONCE <= count:
            loop.call_later(0.001, lambda: start(first + AT_ONCE))

    begun = time.monotonic()
    start(1)
    loop.call_later(TIMEOUT_S, loop.stop)
    loop.run()
    if rosters < count:
        raise SystemExit(
            str(errors[0]) if errors else f"{rosters} of {count} members got the roster in {TIMEOUT_S:g} s"
        )
    print(peak_mb(), flush=True)


def measure(count: int) -> tuple[float, float, float]:
    """Seconds, and the peak memory of node 0 and of all members, in MB."""
    secret = os.urandom(32).hex() + "\n"

    def start(*arguments: object) -> subprocess.Popen[str]:
        argv = [sys.executable, "-I", "-S", __file__, "--part", *map(str, arguments)]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        process.stdin.write(secret)
        process.stdin.flush()
        return process

    hub = start("accept", count)
    assert hub.stdout is not None
    port = hub.stdout.readline().strip()
    members = start("join", count, port)
    said, _ = members.communicate(timeout=2 * TIMEOUT_S)
    if members.returncode:
        hub.kill()
        hub.wait()
        raise SystemExit(f"{count} members: this one has failed.")
    seconds, member_memory = map(float, said.split())
    hub_memory, _ = hub.communicate(timeout=2 * TIMEOUT_S)
    return seconds, float(hub_memory), member_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("members", nargs="*", type=int, default=[2, 64, 1024], help="how many join (2 64 1024)")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        name, *numbers = arguments.part
        {"accept": accept, "join": join}[name](*map(int, numbers))
        return
    print("| members | joined, with the roster | memory of node 0 | memory of all members together |")
    print("|---|---|---|---|")
    for count in arguments.members:
        seconds, hub, members = measure(count)
        print(f"| {count} | {seconds:.3f} s | {hub:.0f} MB | {members:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()

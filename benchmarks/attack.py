"""What a gang's ports stand: garbage, idle and slow connections, and a member that has gone wrong.

    python benchmarks/attack.py [--frames 1000000] [--connections 2000] [--seed 7]

Node 0 has its real guard. In each phase the attacker, a process of its own, does its work, and beside it a node joins,
whose time from the first step to its welcome is measured. Memory is what the guard's peak is above what it had when the
gang was opened. In the last phase a member that has joined sends what no node would: its own node ends, and is told so.
Exits with 1 where a join took longer than a second, memory grew by more than 16 MB, or the guard died.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import IO, Any

import metaflow  # noqa: F401 - before any of its extensions

from metaflow_extensions.gang.core.exceptions import GangInterrupt
from metaflow_extensions.gang.core.guard.channel.connect import ConnectError, connect
from metaflow_extensions.gang.core.guard.channel.connection import PROTOCOL, Connection, Identity
from metaflow_extensions.gang.core.guard.loop.event_loop import Loop
from metaflow_extensions.gang.core.guard.loop.framing import encode
from metaflow_extensions.gang.core.guard.tls import uploads
from metaflow_extensions.gang.core.guard_client.link import INTERRUPT, STACKS, Link

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from support.guard.hostile import Grammar

HOST = "127.0.0.1"
GANG = ["Attack", "1", "start", "1", 0]
NODES = 8
AT_ONCE = 64
JOIN_LIMIT_S, MEMORY_LIMIT_MB = 1.0, 16.0
HELLO = {"version": PROTOCOL, "identity": GANG, "role": "member", "node": 1, "nonce": "ab" * 32, "info": {}}


# -- node 0 ------------------------------------------------------------------------------------------------------------


def node_0() -> None:
    """The task of node 0: opens the gang, says where, and what became of it."""
    link = Link()
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        signals = {"interrupt_signal": int(INTERRUPT), "stacks_signal": int(STACKS)}
        link.request("setup", node=0, folder=folder, gang_id="attack", **signals)
        about = {"timeout": 3600, "host": HOST, "identity": GANG}
        where, _ = link.request("open", num_nodes=NODES, **about)
        print(json.dumps(where), flush=True)
        try:
            info = {"hostname": "host-0", "cpus": 1, "gpus": 0}
            place = {key: where[key] for key in ("address", "port", "secret")}
            link.request("join", info=info, **about, **place)
            print("joined", flush=True)
            link.request("hold")
        except GangInterrupt:
            link.quiet()
            told, _ = link.request("unwound")
            print(json.dumps(told), flush=True)
        link.close()


# -- attackers ---------------------------------------------------------------------------------------------------------


def flood(port: int, frames: int, seed: int) -> None:
    """Send so many frames, each connection's by the grammar."""
    grammar, random = Grammar(Random(seed), GANG, PROTOCOL), Random(seed + 1)
    selector = selectors.DefaultSelector()
    live: dict[socket.socket, bytes] = {}
    sent = 0

    def begin() -> int:
        parts = grammar.connection()
        sock = socket.socket()
        sock.setblocking(False)
        # Many addresses, as the kernel has too few ports for one.
        sock.bind((f"127.0.{random.randrange(1, 250)}.{random.randrange(1, 250)}", 0))
        sock.connect_ex((HOST, port))
        live[sock] = b"".join(parts)
        selector.register(sock, selectors.EVENT_WRITE)
        return len(parts)

    def end(sock: socket.socket) -> None:
        selector.unregister(sock)
        sock.close()
        del live[sock]

    while sent < frames or live:
        while sent < frames and len(live) < AT_ONCE:
            sent += begin()
        for key, events in selector.select(30):
            sock: Any = key.fileobj
            try:
                if events & selectors.EVENT_WRITE:
                    live[sock] = live[sock][sock.send(live[sock]) :]
                    if not live[sock]:
                        sock.shutdown(socket.SHUT_WR)
                        selector.modify(sock, selectors.EVENT_READ)
                elif not sock.recv(65536):
                    end(sock)
            except BlockingIOError:
                pass
            except OSError:
                end(sock)
    print(sent, flush=True)


def hold(port: int, connections: int, kind: str) -> None:
    """Keep so many connections open, each of which says nothing, a hello, or one byte after the other."""
    said = encode(HELLO)
    socks: list[socket.socket] = []

    def one() -> socket.socket | None:
        with contextlib.suppress(OSError):
            sock = socket.create_connection((HOST, port), 30)
            if kind == "hello":
                sock.sendall(said)
            sock.setblocking(False)  # with a time limit, recv() would wait for it at each quiet connection
            return sock
        return None

    socks = [sock for _ in range(connections) if (sock := one()) is not None]
    print("held", flush=True)
    at = 0
    while True:  # until it is killed; whoever is dropped comes again
        for index, sock in enumerate(socks):
            try:
                if kind == "slow":
                    sock.send(said[at % len(said) : at % len(said) + 1])
                if not sock.recv(65536):
                    raise ConnectionResetError
            except BlockingIOError:
                pass
            except OSError:
                sock.close()
                socks[index] = one() or sock
        at += 1
        time.sleep(0.05)


# -- measuring ---------------------------------------------------------------------------------------------------------


def memory_mb(pid: int, what: str) -> float:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(what))


class Member:
    """Another node of the gang, in a loop of its own in a thread."""

    def __init__(self, where: dict[str, Any], node: int) -> None:
        self.seconds: float | None = None
        self.error = ""
        self.report = ""
        self.upload_port = 0
        self._connection: Connection | None = None
        self.loop = Loop()
        begun = time.monotonic()
        self.over, self.has_uploads = threading.Event(), threading.Event()

        def joined(connection: Connection) -> None:
            self.seconds = time.monotonic() - begun
            self._connection = connection
            connection.on_frame = take
            connection.on_close = lambda connection, reason: None
            self.over.set()

        def take(connection: Connection, header: dict[str, Any], payload: bytes) -> None:
            if header["op"] == "ping":
                connection.send({**header, "op": "alive"})
            elif header["op"] == "uploads":
                self.upload_port = header["port"]
                self.has_uploads.set()
            elif header["op"] == "failure-report":
                self.report = header["report"]

        def failed(error: ConnectError) -> None:
            self.error = str(error)
            self.over.set()

        info = {"hostname": f"host-{node}", "cpus": 1, "gpus": 0, "ring_port": 1}
        secret, identity = bytes.fromhex(where["secret"]), Identity(*GANG)  # type: ignore[arg-type]
        connect(self.loop, HOST, where["port"], secret, identity, "member", node, info, joined, failed, 60)
        threading.Thread(target=self.loop.run, daemon=True).start()

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        connection = self._connection
        assert connection is not None
        self.loop.call_soon_threadsafe(lambda: connection.send_own(header, payload))


def start(*arguments: object) -> subprocess.Popen[str]:
    argv = [sys.executable, __file__, "--part", *map(str, arguments)]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    output: IO[str] | None = process.stdout
    assert output is not None
    said = output.readline()
    if not said:
        raise SystemExit("Node 0 has ended.")
    return said


class Attack:
    """Prints one line for each phase, and keeps whether all was well."""

    def __init__(self) -> None:
        self.task = start("node-0")
        self.where: dict[str, Any] = json.loads(line(self.task))
        children = Path(f"/proc/{self.task.pid}/task/{self.task.pid}/children").read_text().split()
        self.guard = int(children[0])
        self.well = True
        self.members: list[Member] = []
        self.before = memory_mb(self.guard, "VmRSS")
        self.join("before the attack", "")

    def join(self, phase: str, notes: str) -> None:
        member = Member(self.where, len(self.members) + 1)
        self.members.append(member)
        member.over.wait(70)
        took = f"{member.seconds:.3f} s" if member.seconds is not None else f"never: {member.error}"
        self.row(phase, "a node joined after", took, member.seconds, notes)

    def row(self, phase: str, what: str, took: str, seconds: float | None, notes: str = "") -> None:
        grown = memory_mb(self.guard, "VmHWM") - self.before
        self.well &= seconds is not None and seconds <= JOIN_LIMIT_S and grown <= MEMORY_LIMIT_MB
        print(f"| {phase}{notes} | {what} {took} | {grown:.1f} MB |", flush=True)

    @contextlib.contextmanager
    def attacker(self, *arguments: object) -> Iterator[subprocess.Popen[str]]:
        process = start(*arguments)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def run(self, frames: int, connections: int, seed: int) -> None:
        port = self.where["port"]
        with self.attacker("flood", port, frames, seed) as process:
            time.sleep(2)
            self.join("while garbage comes", "")
            begun = time.monotonic()
            sent = int(line(process))
            self.join(f"after {sent:,} frames before the proof", f", {time.monotonic() - begun + 2:.0f} s")
        for kind, phase in (("idle", "that say nothing"), ("hello", "that say hello"), ("slow", "a byte at a time")):
            with self.attacker("hold", port, connections, kind) as process:
                line(process)
                self.join(f"{connections:,} connections {phase}", "")
        self.files(connections)
        self.misbehave(seed)

    def files(self, connections: int) -> None:
        self.members[0].send({"op": "uploads"})
        self.members[0].has_uploads.wait(30)
        port, secret = self.members[0].upload_port, bytes.fromhex(self.where["secret"])
        with self.attacker("hold", port, connections, "idle") as process, tempfile.NamedTemporaryFile() as file:
            line(process)
            file.write(bytes(1 << 20))
            file.flush()
            begun = time.monotonic()
            uploads.put(HOST, port, secret, "attack", file.name)
            took = time.monotonic() - begun
            self.row(f"{connections:,} connections to the server of large values", "1 MiB took", f"{took:.3f} s", took)

    def misbehave(self, seed: int) -> None:
        while len(self.members) < NODES - 1:
            self.join("the rest", "")
        assert line(self.task) == "joined\n"
        grammar, bad = Grammar(Random(seed), GANG, PROTOCOL), self.members[1]
        begun = time.monotonic()
        while not bad.report and time.monotonic() - begun < 60:
            header, payload = grammar.message()
            if header.get("op") not in ("fail", "gather", "done", "bye"):  # what may be sent, and is believed
                bad.send(header, payload)
            time.sleep(0.001)
        told = json.loads(line(self.task))
        print(f"\nA member that sends garbage: {told['report'].splitlines()[0]}")
        self.well &= "node 2" in told["report"].splitlines()[0]
        self.task.wait(30)
        print(f"Node 0's task ended with code {self.task.returncode}.")
        self.well &= self.task.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--frames", type=int, default=1_000_000, help="before the proof (1000000)")
    parser.add_argument("--connections", type=int, default=2000, help="idle and slow ones (2000)")
    parser.add_argument("--seed", type=int, default=7, help="of the grammar (7)")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        name, *rest = arguments.part
        if name == "node-0":
            node_0()
        elif name == "flood":
            flood(*map(int, rest))
        else:
            hold(int(rest[0]), int(rest[1]), rest[2])
        return
    print("| attack | beside it | memory of the guard, above its start |")
    print("|---|---|---|")
    attack = Attack()
    try:
        attack.run(arguments.frames, arguments.connections, arguments.seed)
    finally:
        attack.task.kill()
    if not attack.well:
        sys.exit("Not all of it is as it should be.")


if __name__ == "__main__":
    os.environ.setdefault("METAFLOW_GANG_ID", "attack.0")
    main()

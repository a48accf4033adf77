"""A file along a chain of nodes: what arrives, what a broken chain does, what is left. Real processes, real TLS.

Every node is a process with the server that a node's guard has. Between nodes there may be a gate: it passes the bytes
on as they are until so many have come, and then does what the test wants.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from support.faults import kill_process
from support.hosts import Host, Hosts
from support.remote import START_S, remote_gang

from metaflow_extensions.gang.core.guard.file_broadcast import hop, sender
from metaflow_extensions.gang.core.guard.file_broadcast.hop import Passing
from metaflow_extensions.gang.core.guard.file_broadcast.partial_file import SMALL_BYTES, Original
from metaflow_extensions.gang.core.guard.tls.link import BulkError

KEY = os.urandom(32)
HOST = "127.0.0.1"
WAIT_S = 30.0
MIB = 1 << 20

NODE = """
import json, resource, sys
from types import SimpleNamespace
from metaflow_extensions.gang.core.guard.file_broadcast import receiver, sender
from metaflow_extensions.gang.core.guard.remote_command.node_server import NodeServer
from metaflow_extensions.gang.core.guard.settings import use_settings

use_settings({"lost_host_timeout": 4.0})
order = json.loads(sys.stdin.readline())
receiver.KEEP_SECONDS = order["keep"]
if order["largest"]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest"], order["largest"]))

class Node(NodeServer):
    def close(self):
        super().close()
        sender.close()

launcher = SimpleNamespace(node=1)
server = Node(launcher, print, order["private"], order["host"], bytes.fromhex(order["key"]), {}, order["cwd"])
print(server.port, flush=True)
sys.stdin.readline()
server.close()
print("closed", flush=True)
sys.stdin.read()
"""

CONTROL = """
import json, sys
from metaflow_extensions.gang.core.guard.file_broadcast import sender
order = json.loads(sys.stdin.readline())
sender.send(bytes.fromhex(order["key"]), order["path"], order["to"], order["hops"], lambda line: None)
"""


class Node:
    """A node: its process, its working folder ``cwd``, the hop by which the others reach it."""

    def __init__(
        self, index: int, folder: Path, host: Host | None = None, keep: float = 30.0, largest: int = 0
    ) -> None:
        self.index, self.cwd = index, folder / f"node {index}"
        self.cwd.mkdir()
        private = folder / f"private-{index}"
        private.mkdir(mode=0o700)
        self.address = host.address if host else HOST
        argv: list[str] = [sys.executable, "-c", NODE]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = host.popen(argv, cwd="/", **pipes) if host else subprocess.Popen(argv, text=True, **pipes)
        order = {"host": self.address, "key": KEY.hex(), "cwd": str(self.cwd), "private": str(private)}
        self._say(json.dumps({**order, "keep": keep, "largest": largest}))
        self.port = int(self._hear())

    @property
    def hop(self) -> list[Any]:
        return [self.index, self.address, self.port]

    @property
    def files(self) -> list[str]:
        """All files in its working folder, the parts too."""
        return sorted(str(path.relative_to(self.cwd)) for path in self.cwd.rglob("*") if not path.is_dir())

    @property
    def parts(self) -> list[Path]:
        return [path for path in self.cwd.rglob(".*.part") if path.exists()]

    def close(self) -> None:
        """Close the server, as a guard at the end of its gang; the process lives on."""
        self._say("close")
        assert self._hear() == "closed"

    def end(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate(timeout=WAIT_S)

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


class Gate:
    """Stands before a node. When ``after`` bytes have gone in on one connection, ``act`` is called with the next ones.

    What it returns is passed on instead of them. It is called once for each of the first ``times`` connections.
    """

    def __init__(self, node: Node, after: int, act: Callable[[bytes], bytes], times: int = 1) -> None:
        self.node, self.bytes = node, 0
        self._after, self._act, self._times = after, act, times
        self._server = socket.create_server((HOST, 0))
        self.hop = [node.index, HOST, self._server.getsockname()[1]]
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        for sock in (self._server, *self._sockets):
            sock.close()

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            self._sockets.append(near)
            try:
                far = socket.create_connection((self.node.address, self.node.port))
            except OSError:
                near.close()
                continue
            self._sockets.append(far)
            acts, self._times = self._times > 0, self._times - 1
            self._start(self._pump, near, far, acts)
            self._start(self._pump, far, near, None)

    def _pump(self, source: socket.socket, target: socket.socket, acts: bool | None) -> None:
        count = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if acts is not None:
                    count += len(data)
                    self.bytes += len(data)
                    if acts and count > self._after:
                        acts, data = False, self._act(data)
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Hold:
    """An act: the bytes wait from :attr:`reached` on until :meth:`go`."""

    def __init__(self) -> None:
        self.reached, self._go = threading.Event(), threading.Event()

    def __call__(self, data: bytes) -> bytes:
        self.reached.set()
        assert self._go.wait(2 * WAIT_S)
        return data

    def go(self) -> None:
        self._go.set()


def flip(data: bytes) -> bytes:
    """An act: one bit is wrong."""
    return data[:-1] + bytes([data[-1] ^ 1])


class Net:
    """Makes nodes and gates, and ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: list[Node] = []
        self.gates: list[Gate] = []

    def grow(self, count: int, **options: Any) -> list[Node]:
        for _ in range(count):
            self.nodes.append(Node(len(self.nodes) + 1, self.folder, **options))
        return self.nodes

    def gate(self, node: Node, after: int, act: Callable[[bytes], bytes], times: int = 1) -> Gate:
        self.gates.append(Gate(node, after, act, times))
        return self.gates[-1]

    def source(self, size: int, name: str = "source", mode: int = 0o640) -> Path:
        path = self.folder / name
        path.write_bytes(os.urandom(size))
        path.chmod(mode)
        return path

    def end(self) -> None:
        for gate in self.gates:
            gate.close()
        for node in self.nodes:
            node.end()


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    net = Net(tmp_path)
    yield net
    net.end()


class Sending(threading.Thread):
    """A broadcast on a thread; :meth:`outcome` is its error, or ""."""

    def __init__(self, path: Path, to: str, hops: list[list[Any]]) -> None:
        super().__init__()
        self._arguments = (KEY, str(path), to, hops, lambda line: None)
        self._error = ""
        self.start()

    def run(self) -> None:
        try:
            sender.send(*self._arguments)
        except BulkError as error:
            self._error = str(error)

    def outcome(self, timeout: float = 2 * WAIT_S) -> str:
        self.join(timeout)
        assert not self.is_alive()
        return self._error


def send(path: Path, to: str, hops: list[list[Any]], key: bytes = KEY) -> list[str]:
    """The lines that the user saw."""
    lines: list[str] = []
    sender.send(key, str(path), to, hops, lines.append)
    return lines


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_have(nodes: list[Node], source: Path, to: str) -> None:
    """Each has the file, the whole of it, with its mode, and nothing else."""
    for node in nodes:
        assert node.files == [to], f"node {node.index}"
        assert digest(node.cwd / to) == digest(source), f"node {node.index}"
        assert stat.S_IMODE((node.cwd / to).stat().st_mode) == stat.S_IMODE(source.stat().st_mode)


def wait(done: Callable[[], object], seconds: float = WAIT_S) -> None:
    """For what another process does."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"not done after {seconds} s"
        time.sleep(0.01)


# -- what arrives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 16384, 262140, 262141, 5_000_003])
def test_a_file_arrives_on_every_node(net: Net, size: int) -> None:
    nodes = net.grow(4)
    source = net.source(size, mode=0o754)
    assert send(source, "data.bin", [node.hop for node in nodes]) == []
    assert_have(nodes, source, "data.bin")


@pytest.mark.parametrize(
    "name",
    [
        "a'; echo foo",
        " two  words ",
        "new\nline",
        "größe/😀",
        "deep/er/still",
        "-rf",
        "$(id)",
        os.fsdecode(b"\xff\xfe"),
    ],
)
def test_any_name(net: Net, name: str) -> None:
    nodes = net.grow(2)
    source = net.source(1000)
    send(source, name, [node.hop for node in nodes])
    assert_have(nodes, source, name)


def test_an_absolute_target(net: Net, tmp_path: Path) -> None:
    nodes = net.grow(2)
    source = net.source(1000)
    send(source, str(tmp_path / "elsewhere" / "x"), [node.hop for node in nodes])
    assert digest(tmp_path / "elsewhere" / "x") == digest(source)
    assert os.listdir(tmp_path / "elsewhere") == ["x"]


def test_setuid_does_not_travel(net: Net) -> None:
    (node,) = net.grow(1)
    send(net.source(10, mode=0o4755), "tool", [node.hop])
    assert stat.S_IMODE((node.cwd / "tool").stat().st_mode) == 0o755


def test_progress_is_told_for_large_files(net: Net) -> None:
    nodes = net.grow(2)
    source = net.source(70 * MIB)
    lines = send(source, "large", [node.hop for node in nodes])
    assert_have(nodes, source, "large")
    assert lines[0] == "sending source (70 MiB) to 2 nodes: 0 %"
    assert lines[-1] == "sending source (70 MiB) to 2 nodes: 100 %"
    assert len(lines) <= 12


def test_progress_is_not_told_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(sender, "time", SimpleNamespace(monotonic=lambda: clock))
    clock = 0.0
    progress = sender.Progress("sending", 100 * MIB, lines.append)
    for percent in range(101):
        clock = percent / 2  # a tenth takes 5 s
        progress(percent * MIB)
    progress.done()
    assert lines == [f"sending: {percent} %" for percent in range(0, 101, 10)]
    lines.clear()
    clock = 100.0
    progress = sender.Progress("sending", 100 * MIB, lines.append)
    for percent in range(101):
        clock = 100 + percent / 10  # a tenth takes 1 s
        progress(percent * MIB)
    progress.done()
    assert lines == ["sending: 0 %", "sending: 50 %", "sending: 100 %"]


def test_a_target_is_replaced_at_once(net: Net) -> None:
    """A reader at any moment sees one of the two files, and the whole of it."""
    (node,) = net.grow(1)
    sources = [net.source(3 * MIB, "one"), net.source(2 * MIB, "two")]
    send(sources[0], "target", [node.hop])
    wanted, seen, done = {path.read_bytes() for path in sources}, set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add((node.cwd / "target").read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for turn in range(10):
            send(sources[(turn + 1) % 2], "target", [node.hop])
        end = time.monotonic() + WAIT_S
        while seen < wanted and time.monotonic() < end:
            send(sources[1], "target", [node.hop])
    finally:
        done.set()
        reader.join(WAIT_S)
    assert seen == wanted
    assert node.files == ["target"]


def test_a_link_at_the_target_is_replaced_and_not_followed(net: Net) -> None:
    (node,) = net.grow(1)
    victim = net.folder / "victim"
    victim.write_text("mine")
    (node.cwd / "target").symlink_to(victim)
    source = net.source(100)
    send(source, "target", [node.hop])
    assert victim.read_text() == "mine"
    assert not (node.cwd / "target").is_symlink()
    assert_have([node], source, "target")


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_another_key_is_refused(net: Net) -> None:
    nodes = net.grow(2)
    with pytest.raises(BulkError) as caught:
        send(net.source(100), "x", [node.hop for node in nodes], key=os.urandom(32))
    lines = str(caught.value).splitlines()
    assert [line.split(" (")[0] for line in lines] == ["node 1", "node 2"]
    assert all("does not know this gang's secret" in line for line in lines)
    assert nodes[0].files == nodes[1].files == []


def test_a_folder_is_no_target(net: Net) -> None:
    nodes = net.grow(3)
    (nodes[1].cwd / "x").mkdir()
    source = net.source(100)
    with pytest.raises(BulkError, match=rf"^node 2 \(127.0.0.1\) did not get source: .*{nodes[1].cwd}/x is a folder"):
        send(source, "x", [node.hop for node in nodes])
    assert_have([nodes[0], nodes[2]], source, "x")
    assert nodes[1].files == []


def test_what_is_no_file_is_not_sent(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BulkError, match="is not a file"):
        send(tmp_path / "pipe", "x", [])
    with pytest.raises(OSError, match="missing"):
        send(tmp_path / "missing", "x", [])


def test_a_node_without_room(net: Net) -> None:
    """It finds out in the middle, and says so; those after it get the file from the one before."""
    net.grow(1)
    net.grow(1, largest=MIB)
    nodes = net.grow(1)
    source = net.source(20 * MIB)
    with pytest.raises(BulkError, match=r"^node 2 \(127.0.0.1\) did not get source: .*File too large"):
        send(source, "x", [node.hop for node in nodes])
    assert_have([nodes[0], nodes[2]], source, "x")
    assert nodes[1].files == []


@pytest.mark.uncounted  # the limit of memory is that of a guard alone
def test_a_node_without_a_thread_to_pass_it_on(net: Net) -> None:
    """It says so, the one before it sends to the one after it, and control to it alone, which needs one thread less."""
    nodes = net.grow(3)
    before, pid = resource.prlimit(nodes[1].process.pid, resource.RLIMIT_AS), nodes[1].process.pid
    memory = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (memory + 13 * MIB, before[1]))  # a thread's stack has 8 MiB
    source = net.source(5 * MIB)
    original = Original(str(source))
    passing = Passing(original, "once", "y", [(node.index, HOST, node.port) for node in nodes[1:]], KEY)
    passing.run()
    original.close()
    assert list(passing.missed) == [2]
    assert "refuses: The guard has no thread left (can't start new thread" in passing.missed[2]
    assert send(source, "x", [node.hop for node in nodes]) == []
    assert [node.files for node in nodes] == [["x"], ["x"], ["x", "y"]]
    assert len({digest(node.cwd / "x") for node in nodes} | {digest(source)}) == 1


@pytest.mark.parametrize("change", ["shorter", "longer", "other"])
def test_a_source_that_changes(net: Net, change: str) -> None:
    """Nobody gets anything, and no part waits for more."""
    nodes = net.grow(3)
    source, hold = net.source(30 * MIB), Hold()
    gate = net.gate(nodes[0], 8 * MIB, hold)
    sending = Sending(source, "x", [gate.hop, nodes[1].hop, nodes[2].hop])
    assert hold.reached.wait(WAIT_S)
    if change == "shorter":
        os.truncate(source, 20 * MIB)
    else:
        with source.open("r+b") as file:
            file.seek(0, os.SEEK_END if change == "longer" else os.SEEK_SET)
            file.write(b"more")
    hold.go()
    assert ("became shorter" if change == "shorter" else "was changed") + " while it was sent" in sending.outcome()
    wait(lambda: not any(node.files for node in nodes), 5)


# -- broken chains -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("down", [{1}, {2}, {4}, {2, 3}, {1, 2, 3, 4}])
def test_nodes_that_are_down(net: Net, down: set[int]) -> None:
    nodes = net.grow(4)
    for index in down:
        kill_process(nodes[index - 1].process.pid)
    source = net.source(3 * MIB)
    with pytest.raises(BulkError) as caught:
        send(source, "x", [node.hop for node in nodes])
    lines = str(caught.value).splitlines()
    for index, line in zip(sorted(down), lines, strict=True):
        assert line.startswith(f"node {index} (127.0.0.1) did not get source: Cannot connect to 127.0.0.1 port ")
    assert_have([node for node in nodes if node.index not in down], source, "x")


@pytest.mark.slow
def test_a_node_that_dies_in_the_middle(net: Net) -> None:
    """The one before goes on with the one after, from where that one is."""
    nodes = net.grow(4)
    hold = Hold()
    before = net.gate(nodes[1], 24 * MIB, hold)
    after = net.gate(nodes[2], 1 << 40, flip)
    source = net.source(32 * MIB)
    sending = Sending(source, "x", [nodes[0].hop, before.hop, after.hop, nodes[3].hop])
    assert hold.reached.wait(WAIT_S)
    wait(lambda: nodes[2].parts and nodes[2].parts[0].stat().st_size > 16 * MIB)
    kill_process(nodes[1].process.pid)
    hold.go()
    assert sending.outcome().startswith("node 2 (127.0.0.1) did not get source: ")
    assert_have([nodes[0], nodes[2], nodes[3]], source, "x")
    assert after.bytes < 40 * MIB, "node 3 was sent again what it had"


@pytest.mark.slow
def test_the_last_node_dies_in_the_middle(net: Net) -> None:
    nodes = net.grow(3)
    hold = Hold()
    gate = net.gate(nodes[2], 4 * MIB, hold)
    source = net.source(16 * MIB)
    sending = Sending(source, "x", [nodes[0].hop, nodes[1].hop, gate.hop])
    assert hold.reached.wait(WAIT_S)
    kill_process(nodes[2].process.pid)
    hold.go()
    assert sending.outcome().startswith("node 3 (127.0.0.1) did not get source: ")
    assert_have(nodes[:2], source, "x")


def test_a_wrong_byte_on_the_way(net: Net) -> None:
    """TLS sees it. The node is left out, and gets the rest from control in the end."""
    nodes = net.grow(3)
    gate = net.gate(nodes[1], 5 * MIB, flip)
    source = net.source(16 * MIB)
    send(source, "x", [nodes[0].hop, gate.hop, nodes[2].hop])
    assert_have(nodes, source, "x")


def test_wrong_bytes_again_and_again(net: Net) -> None:
    nodes = net.grow(3)
    gate = net.gate(nodes[1], MIB, flip, times=99)
    source = net.source(16 * MIB)
    with pytest.raises(BulkError, match=r"^node 2 \(127.0.0.1\) did not get source: "):
        send(source, "x", [nodes[0].hop, gate.hop, nodes[2].hop])
    assert_have([nodes[0], nodes[2]], source, "x")
    nodes[1].close()
    assert nodes[1].files == []


@pytest.mark.slow
def test_a_node_that_stops_reading(net: Net) -> None:
    """The kernel gives up after twice ``lost_host_timeout``; the node is left out, and tried once more by control."""
    nodes = net.grow(3)
    hold = Hold()
    gate = net.gate(nodes[1], 4 * MIB, hold)
    source = net.source(32 * MIB)
    sending = Sending(source, "x", [nodes[0].hop, gate.hop, nodes[2].hop])
    assert hold.reached.wait(WAIT_S)
    begun = time.monotonic()
    assert sending.outcome() == ""
    print(f"gone round after {time.monotonic() - begun:.1f} s")
    hold.go()
    assert_have(nodes, source, "x")


@pytest.mark.slow
def test_a_closed_node_leaves_nothing(net: Net) -> None:
    nodes = net.grow(3)
    hold = Hold()
    gate = net.gate(nodes[1], 4 * MIB, hold)
    source = net.source(16 * MIB)
    sending = Sending(source, "x", [nodes[0].hop, gate.hop, nodes[2].hop])
    assert hold.reached.wait(WAIT_S)
    wait(lambda: nodes[1].parts)
    nodes[1].close()
    assert nodes[1].files == []
    hold.go()
    assert sending.outcome().startswith("node 2 (127.0.0.1) did not get source: ")
    assert_have([nodes[0], nodes[2]], source, "x")


def test_control_is_killed(net: Net) -> None:
    """The nodes wait a moment for another sender, then give up what they have."""
    nodes = net.grow(3, keep=1.0)
    hold = Hold()
    gate = net.gate(nodes[0], 4 * MIB, hold)
    order = {"key": KEY.hex(), "path": str(net.source(32 * MIB)), "to": "x"}
    hops = [gate.hop, nodes[1].hop, nodes[2].hop]
    with subprocess.Popen([sys.executable, "-c", CONTROL], stdin=subprocess.PIPE, text=True) as control:
        assert control.stdin is not None
        control.stdin.write(json.dumps({**order, "hops": hops}) + "\n")
        control.stdin.flush()
        assert hold.reached.wait(WAIT_S)
        wait(lambda: all(node.parts for node in nodes))
        kill_process(control.pid)
    hold.go()
    wait(lambda: not any(node.files for node in nodes), 10)
    source = net.source(1000, "second")
    send(source, "x", [node.hop for node in nodes])
    assert_have(nodes, source, "x")


def test_what_is_small_goes_along_a_tree(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """To some nodes at once, each of which passes it on to its part of the rest; who is out of reach is left out."""
    nodes = net.grow(12)
    sent_to: list[int] = []

    class Seen(Passing):
        def _send(self, hop: Any, *rest: Any) -> None:
            sent_to.append(hop[0])
            super()._send(hop, *rest)

    monkeypatch.setattr(hop, "Passing", Seen)
    for size, name, first in ((SMALL_BYTES, "small", [1, 4, 7, 10]), (SMALL_BYTES + 1, "larger", [1])):
        source = net.source(size, name)
        send(source, "x", [node.hop for node in nodes])
        assert sorted(sent_to) == first
        assert_have(nodes, source, "x")
        sent_to.clear()
    absent = [nodes[index - 1] for index in (2, 7, 12)]
    for node in absent:
        node.end()
    source = net.source(1000)
    with pytest.raises(BulkError) as caught:
        send(source, "x", [node.hop for node in nodes])
    assert [line.split()[1] for line in str(caught.value).splitlines()] == ["2", "7", "12"]
    assert_have([node for node in nodes if node not in absent], source, "x")


def test_a_large_chain_fits_no_header(net: Net) -> None:
    """A list of a thousand nodes, most of which are not there."""
    nodes = net.grow(2)
    with socket.create_server((HOST, 0)) as closed:
        port = closed.getsockname()[1]
    source = net.source(1000)
    absent = [[index, HOST, port] for index in range(3, 1001)]
    with pytest.raises(BulkError) as caught:
        send(source, "x", [nodes[0].hop, nodes[1].hop, *absent])
    assert len(str(caught.value).splitlines()) == 998
    assert_have(nodes, source, "x")


# -- over hosts --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cut_link(tmp_path: Path) -> None:
    """Packets of one host vanish without a word: the others get the file, and the host is named."""
    with Hosts(4, rate=100) as hosts:
        nodes: list[Node] = []
        try:
            for host in (hosts[1], hosts[2], hosts[3]):
                nodes.append(Node(host.index, tmp_path, host))
            source = tmp_path / "source"
            source.write_bytes(os.urandom(48 * MIB))
            argv = [sys.executable, "-c", CONTROL]
            control = hosts[0].popen(argv, cwd="/", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
            assert control.stdin is not None
            order = {"key": KEY.hex(), "path": str(source), "to": "x", "hops": [node.hop for node in nodes]}
            control.stdin.write(json.dumps(order) + "\n")
            control.stdin.flush()
            wait(lambda: nodes[2].parts and nodes[2].parts[0].stat().st_size > 8 * MIB)
            hosts.cut(2)
            begun = time.monotonic()
            _, said = control.communicate(timeout=3 * WAIT_S)
            print(f"over {time.monotonic() - begun:.1f} s after the cut")
            assert f"node 2 ({hosts[2].address}) did not get source: Cannot connect to {hosts[2].address}" in said
            assert_have([nodes[0], nodes[2]], source, "x")
            hosts.heal(2)
            nodes[1].close()
            assert nodes[1].files == []
        finally:
            for node in nodes:
                node.end()


@pytest.mark.slow
def test_a_disk_that_fills_up_on_the_way(tmp_path: Path) -> None:
    """The node is named with its folder, those after it have the file, and what had come is removed."""
    with Hosts(4, rate=200) as hosts:
        nodes: list[Node] = []
        try:
            for host in (hosts[1], hosts[2], hosts[3]):
                host.run(["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", "/mnt"])
                nodes.append(Node(host.index, tmp_path, host))
            source = tmp_path / "source"
            source.write_bytes(os.urandom(48 * MIB))
            control = hosts[0].popen(
                [sys.executable, "-c", CONTROL], cwd="/", stdin=subprocess.PIPE, stderr=subprocess.PIPE
            )
            assert control.stdin is not None
            order = {"key": KEY.hex(), "path": str(source), "to": "/mnt/x", "hops": [node.hop for node in nodes]}
            control.stdin.write(json.dumps(order) + "\n")
            control.stdin.flush()
            has_some = ["sh", "-c", f"test $(stat -c %s /mnt/.*.part) -gt {4 * MIB}"]
            wait(lambda: hosts[2].popen(has_some, stderr=subprocess.DEVNULL).wait() == 0)
            # As much as the file was promised at its start.
            hosts[2].run(["sh", "-c", "dd if=/dev/zero of=/mnt/other bs=1M count=50 2> /dev/null || true"])
            _, said = control.communicate(timeout=3 * WAIT_S)
            # It stopped in the middle; control, which tries once more, finds no room at the start.
            why = rf"There is no room for {48 * MIB} bytes in /mnt|/mnt: No space left on device"
            assert re.search(rf"node 2 \({hosts[2].address}\) did not get source: .*({why})\.\n$", said), said
            assert "node 1 " not in said and "node 3 " not in said
            for host, files in ((hosts[1], "x"), (hosts[2], "other"), (hosts[3], "x")):
                assert host.run(["ls", "-A", "/mnt"]).stdout.split() == [files]
            assert digest(source) in hosts[3].run(["sha256sum", "/mnt/x"]).stdout
        finally:
            for node in nodes:
                node.end()


FLOW = """
import hashlib, os, resource
from metaflow import FlowSpec, current, gang, step

class Spread(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @gang
    @step
    def work(self):
        from metaflow_extensions.gang.core.calls.broadcast_file import broadcast_file
        from metaflow_extensions.gang.core.exceptions import BadAttribute, BroadcastFailed
        from metaflow_extensions.gang.core.remote_shell.channel import ChannelShell

        gang = current.gang
        here, there = "/dev/shm/it's\\n ä", "/dev/shm/new/place"  # each host has a /dev/shm of its own
        channel = ChannelShell.form(gang, dict(os.environ), "/dev/shm")
        if gang.is_control:
            guard, kind = gang._link.guard_pid, resource.RLIMIT_AS
            with open(f"/proc/{guard}/statm") as statm:
                memory = int(statm.read().split()[0]) * resource.getpagesize()
            before = resource.prlimit(guard, kind, (memory + (4 << 20), -1))  # a thread's stack has 8 MiB
            try:
                broadcast_file(gang, channel, __file__)
            except BroadcastFailed as error:
                print("without a thread:", error.message)
            resource.prlimit(guard, kind, before)
        data = gang.broadcast(os.urandom(3_000_000))
        if gang.is_control:
            with open(here, "wb") as file:
                file.write(data)
            os.chmod(here, 0o711)
            broadcast_file(gang, channel, here)
            broadcast_file(gang, channel, here, to=there)
            os.chdir("/dev/shm")
            broadcast_file(gang, channel, "new/place", to="relative")
            for wrong in ({"path": "missing"}, {"path": "new"}, {"path": "relative", "to": "new"}, {"path": 3}):
                try:
                    broadcast_file(gang, channel, **wrong)
                except BadAttribute as error:
                    print("refused:", error.message)
        gang.barrier()
        if gang.node_index == 2:
            os.mkdir("/dev/shm/taken")
        gang.barrier()
        if gang.is_control:
            try:
                broadcast_file(gang, channel, "relative", to="taken")
            except BroadcastFailed as error:
                print("failed:", error.message)
        gang.barrier()
        for name in (here, there, "/dev/shm/relative"):
            with open(name, "rb") as file:
                same = file.read() == data
            print(f"node {gang.node_index}: {same} {os.stat(name).st_mode & 0o777:o};")
        print(f"node {gang.node_index} has", sorted(os.listdir("/dev/shm")))
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Spread()
"""


@pytest.mark.slow
def test_broadcast_file_in_a_gang(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all()
        outputs = [task.ok(2 * START_S) for task in tasks]
    for index, output in enumerate(outputs):
        assert output.count(f"node {index}: True 711;") == 3, output
        names = ["it's\n ä", "new", "relative", "taken"]
        assert f"node {index} has {names}" in output
    assert outputs[0].count("refused: ") == 4
    assert "is not there" in outputs[0] and "is a folder" in outputs[0] and "filename is a path" in outputs[0]
    assert outputs[0].count("failed: node 2 (10.77.0.12) did not get relative: ") == 1
    without = (
        r"without a thread: The guard of node 0 has no thread left \(can't start new thread: .*\) to send the file"
    )
    assert len(re.findall(without, outputs[0])) == 1


@pytest.mark.slow
def test_broadcast_file_in_a_local_gang(tmp_path: Path, flow_run: Callable[..., Any]) -> None:
    """All nodes are this machine: a file is where it is, or is copied."""
    shared = tmp_path / "shm"
    shared.mkdir()
    flow = FLOW.replace("/dev/shm", str(shared)).replace('to="taken"', 'to="taken/file"')
    run = flow_run(flow, env={"NODES": "2"}).ok(2 * START_S)
    for index in range(2):
        assert run.output.count(f"node {index}: True 711;") == 3, run.dump()
    assert sorted(os.listdir(shared)) == ["it's\n ä", "new", "relative", "taken"]
    assert os.listdir(shared / "taken") == ["file"]

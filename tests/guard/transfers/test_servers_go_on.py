"""The servers of a guard go on beside idle connections, and when descriptors or threads run out; and say what did."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from support.processes import all_processes
from test_files_between_nodes import HOST, SECRET, proved, server  # noqa: F401 - a fixture
from test_remote_commands import LocalGang, wait

from metaflow_extensions.gang.core.guard.settings import use_settings
from metaflow_extensions.gang.core.guard.tls import uploads
from metaflow_extensions.gang.core.guard.tls.link import client_context
from metaflow_extensions.gang.core.guard.tls.uploads import UploadServer, put

IDLE = 1500
"""Connections of which nothing comes; a thread and five seconds for each of 64 made that two minutes."""

SOON = 10.0
"""For what takes some tenths of a second, on a machine that is busy with other tests."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * IDLE
    if hard < wanted:
        pytest.skip(f"at most {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        client_context().wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("says", ["nothing", "the beginning of TLS"])
@pytest.mark.usefixtures("many_files")
def test_idle_connections_hold_up_no_file(server: UploadServer, folder: Path, tmp_path: Path, says: str) -> None:  # noqa: F811
    words = client_hello() if says != "nothing" else b""
    (tmp_path / "source").write_bytes(b"content")
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE if not words else 300):
            sock = stack.enter_context(socket.create_connection((HOST, server.port), 20))
            sock.sendall(words)
        begun = time.monotonic()
        put(HOST, server.port, SECRET, "name", str(tmp_path / "source"))
        assert time.monotonic() - begun < SOON
    assert (folder / "name").read_bytes() == b"content"


@pytest.fixture
def usual_settings() -> Iterator[None]:
    yield
    use_settings({})


@pytest.mark.usefixtures("usual_settings")
def test_a_client_waits_for_its_turn_longer_than_a_transfer_may_stand_still(folder: Path, tmp_path: Path) -> None:
    stall_s = 1.5
    (tmp_path / "source").write_bytes(b"content")
    use_settings({"transfer_connections": 1})
    busy = UploadServer(HOST, SECRET, str(folder))
    with contextlib.closing(busy), proved(busy.port) as before_it:
        before_it.send_header({"put": "slow", "size": 1})
        before_it.answer()  # the only thread is busy from here on
        use_settings({"transfer_stall_timeout": stall_s})
        put_there = threading.Thread(target=put, args=(HOST, busy.port, SECRET, "name", str(tmp_path / "source")))
        put_there.start()
        put_there.join(2 * stall_s)
        assert put_there.is_alive()
        before_it.send(b"x")
        before_it.answer()
        put_there.join(SOON)
    assert (folder / "name").read_bytes() == b"content"


SERVER = """
import sys
package = type(sys)("guard")
package.__path__ = [sys.argv[1]]
sys.modules["guard"] = package
from guard.tls.uploads import UploadServer
from guard.loop.limits import Complaint

complain = Complaint(lambda line: print(line, flush=True), "node 0", "for large values")
server = UploadServer("127.0.0.1", bytes.fromhex(sys.argv[2]), sys.argv[3], complain=complain)
print(server.port, flush=True)
sys.stdin.read()
server.close()
"""


@pytest.fixture
def process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A server in a process of its own, whose limits can be changed."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            SERVER,
            os.path.dirname(os.path.dirname(str(uploads.__file__))),
            SECRET.hex(),
            str(folder),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.communicate(timeout=30)
    assert process.returncode == 0


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def start_put(port: int, source: Path, target: Path) -> Callable[[], bytes]:
    """Upload a file in a thread; what is returned waits for it."""
    source.write_bytes(b"content")
    thread = threading.Thread(target=put, args=(HOST, port, SECRET, target.name, str(source)), daemon=True)
    thread.start()

    def content() -> bytes:
        thread.join(30)
        return target.read_bytes()

    return content


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextlib.contextmanager
def without_threads(pid: int) -> Iterator[None]:
    """A process that may not have the memory of another thread's stack, which are 8 MiB."""
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (memory(pid) + (4 << 20), before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)


def memory(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def test_a_server_without_free_descriptors_goes_on(
    process: subprocess.Popen[str], folder: Path, tmp_path: Path
) -> None:
    port = int(line_of(process))
    limit = open_files(process.pid) + 24
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, limit))
    # Those that prove nothing go for one that does, and for the file that it wants ...
    idle = [socket.create_connection((HOST, port), 20) for _ in range(100)]
    assert start_put(port, tmp_path / "source", folder / "first")() == b"content"
    said = line_of(process)
    assert said.startswith(f"The guard of node 0 has no open file left (the limit is {limit}, ulimit -n)"), said
    assert "for its port for large values. Whoever connects waits until that is over." in said
    for sock in idle:
        sock.close()
    # ... and those that have proved the secret do not.
    links = [proved(port) for _ in range(24)]
    content = start_put(port, tmp_path / "source", folder / "second")
    for link in links:
        link.close()
    assert content() == b"content"


def test_a_server_without_free_threads_goes_on(process: subprocess.Popen[str], folder: Path, tmp_path: Path) -> None:
    port = int(line_of(process))
    with without_threads(process.pid):
        links = [proved(port) for _ in range(3)]
        content = start_put(port, tmp_path / "source", folder / "name")
        said = line_of(process)
        assert said.startswith("The guard of node 0 has no thread left (can't start new thread: "), said
    assert content() == b"content"
    for link in links:
        link.close()


def guard_of(task: subprocess.Popen[str]) -> int:
    children = [one for one in all_processes().values() if one.parent == task.pid]
    (guard,) = [one.pid for one in children if any("guard" in word for word in one.command)]
    return guard


def test_programs_that_want_commands_run_are_served_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as stderr:
        gang = LocalGang(tmp_path / "own", stderr=stderr)
    try:
        guard = guard_of(gang.tasks[0])
        files = open_files(guard)
        with contextlib.ExitStack() as stack:
            folder = next((tmp_path / "own").glob("metaflow-gang-*/gangs/*-0-*/**/callers")).parent
            place = os.open(folder, os.O_PATH)  # the path of a socket has 107 bytes at most
            stack.callback(os.close, place)
            where = f"/proc/self/fd/{place}/callers"
            for _ in range(300):  # more than may be asking at once
                program = stack.enter_context(socket.socket(socket.AF_UNIX))
                program.connect(where)
            assert gang.run("node1", "echo back").stdout == b"back\n"
        with without_threads(guard):
            programs = [gang.start("node1", "cat") for _ in range(8)]
            wait(lambda: "The guard of node 0 has no thread left" in log.read_text())
        assert [program.communicate(b"back", 30)[0] for program in programs] == [b"back"] * 8
        # A program takes its connection, its streams and one to the other node.
        resource.prlimit(guard, resource.RLIMIT_NOFILE, (files + 14,) * 2)
        programs = []
        while "The guard of node 0 has no open file left" not in log.read_text():
            programs.append(gang.start("node1", "cat"))
            assert len(programs) < 20
            with contextlib.suppress(subprocess.TimeoutExpired):
                programs[-1].wait(0.5)
        assert [program.communicate(b"back", 30)[0] for program in programs] == [b"back"] * len(programs)
        gang.close()
    finally:
        gang.kill()

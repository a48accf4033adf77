"""Uploads to node 0: who may, what arrives, and what someone in the middle gets. Real TLS over real TCP."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import resource
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest

from metaflow_extensions.gang.core.guard.settings import settings
from metaflow_extensions.gang.core.guard.tls import uploads
from metaflow_extensions.gang.core.guard.tls.certificate import self_signed
from metaflow_extensions.gang.core.guard.tls.link import Link, client_context, server_context
from metaflow_extensions.gang.core.guard.tls.uploads import BulkError, UploadServer, put

SECRET = os.urandom(32)
HOST = "127.0.0.1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[UploadServer]:
    server = UploadServer(HOST, SECRET, str(folder))
    yield server
    server.close()


def connected(port: int) -> ssl.SSLSocket:
    """A client of our own: TLS is agreed on, nothing is proved."""
    sock = client_context().wrap_socket(socket.create_connection((HOST, port), 20))
    sock.settimeout(20)
    return sock


def proved(port: int) -> Link:
    """A client that has proved the secret."""
    plain = socket.create_connection((HOST, port), 20)
    link = Link(client_context().wrap_socket(plain, do_handshake_on_connect=False), "the server")
    link.prove(SECRET, 20)
    return link


def request_of(name: str, content: bytes) -> bytes:
    """What a client sends behind its proof to upload a file."""
    header = json.dumps({"put": name, "size": len(content)}).encode()
    return len(header).to_bytes(4, "big") + header + content


def proof(sock: ssl.SSLSocket, side: str, secret: bytes = SECRET) -> bytes:
    binding = sock.get_channel_binding("tls-unique")
    assert binding
    return hmac.digest(secret, f"gang bulk {side} ".encode() + binding, "sha256")


def read_to_end(sock: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
        while data := sock.recv(65536):
            parts.append(data)
    sock.close()
    return b"".join(parts)


def wait(done: Callable[[], bool], seconds: float = 20.0) -> None:
    """For what another thread does."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"not done after {seconds} s"
        time.sleep(0.01)


@pytest.mark.parametrize("size", [0, 1, 16384, 3_000_001])
def test_a_file_arrives(server: UploadServer, folder: Path, tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))
    put(HOST, server.port, SECRET, "größe 1.bin", str(source))
    assert (folder / "größe 1.bin").read_bytes() == source.read_bytes()
    assert stat.S_IMODE((folder / "größe 1.bin").stat().st_mode) == 0o600
    assert os.listdir(folder) == ["größe 1.bin"]
    assert sorted(os.listdir(tmp_path)) == ["served", "source"]


def test_over_ipv6(folder: Path, tmp_path: Path) -> None:
    server = UploadServer("::1", SECRET, str(folder))
    (tmp_path / "source").write_bytes(b"six")
    put("::1", server.port, SECRET, "name", str(tmp_path / "source"))
    assert (folder / "name").read_bytes() == b"six"
    server.close()
    server.close()
    with pytest.raises(BulkError, match=rf"Cannot connect to \[::1\] port {server.port}: .*refused.*security group"):
        put("::1", server.port, SECRET, "name", str(tmp_path / "source"))


def test_a_name_is_replaced_at_once(server: UploadServer, folder: Path, tmp_path: Path) -> None:
    (folder / "name").write_bytes(b"old")
    before = os.open(folder / "name", os.O_RDONLY)
    (tmp_path / "source").write_bytes(b"new")
    put(HOST, server.port, SECRET, "name", str(tmp_path / "source"))
    assert (folder / "name").read_bytes() == b"new"
    assert os.read(before, 9) == b"old"
    os.close(before)


def test_many_at_once(server: UploadServer, folder: Path, tmp_path: Path) -> None:
    """More than the server serves at a time: the others wait their turn."""
    (tmp_path / "source").write_bytes(os.urandom(100_000))
    failures: list[BulkError] = []

    def one(index: int) -> None:
        try:
            put(HOST, server.port, SECRET, f"file-{index}", str(tmp_path / "source"))
        except BulkError as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(settings().transfer_connections + 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert len(os.listdir(folder)) == len(threads)


NAMES = ["../out", "a/b", "/etc/passwd", "..", ".", ".hidden", "", "a\nb", "a\0b", "x" * 201, "é" * 101]


@pytest.mark.parametrize("name", NAMES)
def test_names_stay_in_the_folder(server: UploadServer, folder: Path, tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"data")
    with pytest.raises(BulkError, match="is not a plain file name"):
        put(HOST, server.port, SECRET, name, str(source))
    assert sorted(os.listdir(tmp_path)) == ["served", "source"] and not os.listdir(folder)


def test_a_link_of_that_name_is_replaced_and_not_followed(server: UploadServer, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"untouched")
    (folder / "name").symlink_to(tmp_path / "outside")
    (tmp_path / "source").write_bytes(b"new")
    put(HOST, server.port, SECRET, "name", str(tmp_path / "source"))
    assert (tmp_path / "outside").read_bytes() == b"untouched"
    assert not (folder / "name").is_symlink() and (folder / "name").read_bytes() == b"new"


@pytest.mark.parametrize(
    "request_", [{}, {"get": "x"}, {"put": "x"}, {"put": "x", "size": -1}, {"put": "x", "size": True}]
)
def test_a_malformed_request_is_answered_with_a_sentence(server: UploadServer, request_: dict[str, Any]) -> None:
    with proved(server.port) as link:
        link.send_header(request_)
        with pytest.raises(BulkError, match=r"the server refuses: .* is not a"):
            link.answer()


@pytest.mark.parametrize("data", [b"\0\0\0\2[]", b"\0\0\0\2{]", b"\0\0\0\1\xff", b"\xff\xff\xff\xff"])
def test_a_malformed_header_is_answered_too(server: UploadServer, data: bytes) -> None:
    with proved(server.port) as link:
        link.send(data)
        with pytest.raises(BulkError, match=r"the server refuses: .* header"):
            link.answer()


def test_a_file_that_has_no_room_is_refused_before_it_is_sent(server: UploadServer) -> None:
    with proved(server.port) as link:
        link.send_header({"put": "huge", "size": 2**62})
        with pytest.raises(BulkError, match=f"There is no room for {2**62} bytes"):
            link.answer()


def test_a_request_that_is_too_large_is_not_sent(server: UploadServer, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"")
    with pytest.raises(BulkError, match="is too large"):
        put(HOST, server.port, SECRET, "x" * 5000, str(tmp_path / "source"))


# Who may


def test_another_secret_is_noticed_by_the_client(server: UploadServer, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"secret plans")
    with pytest.raises(BulkError, match="does not know this gang's secret"):
        put(HOST, server.port, os.urandom(32), "name", str(tmp_path / "source"))
    assert not os.listdir(folder)


@pytest.mark.parametrize("kind", ["random", "another secret", "the server's own", "of another session"])
def test_a_wrong_proof_is_noticed_by_the_server(server: UploadServer, folder: Path, kind: str) -> None:
    sock, other = connected(server.port), connected(server.port)
    shown = {
        "random": os.urandom(32),
        "another secret": proof(sock, "client", os.urandom(32)),
        "the server's own": proof(sock, "server"),
        "of another session": proof(other, "client"),
    }[kind]
    with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
        sock.sendall(shown + request_of("name", b"content"))
    assert len(read_to_end(sock)) in (0, 32)  # its own proof at most, which may be lost to the reset
    assert not os.listdir(folder)
    other.close()


def test_the_right_proof_is_all_it_takes(server: UploadServer, folder: Path) -> None:
    sock = connected(server.port)
    sock.sendall(proof(sock, "client") + request_of("name", b"content"))
    read_to_end(sock)
    assert (folder / "name").read_bytes() == b"content"


def test_other_kinds_of_tls_are_refused(server: UploadServer) -> None:
    for change in ("TLS 1.3", "no forward secrecy", "anonymous"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if change == "TLS 1.3":
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        else:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers("kRSA" if change == "no forward secrecy" else "aNULL:@SECLEVEL=0")
        with socket.create_connection((HOST, server.port), 20) as plain, pytest.raises(ssl.SSLError):
            context.wrap_socket(plain)


def test_a_session_is_not_resumed(server: UploadServer, folder: Path) -> None:
    context = client_context()
    first = context.wrap_socket(socket.create_connection((HOST, server.port), 20))
    second = context.wrap_socket(socket.create_connection((HOST, server.port), 20), session=first.session)
    bindings = {sock.get_channel_binding("tls-unique") for sock in (first, second)}
    assert len(bindings) == 2
    if second.session_reused:
        # Then the server must not take even the right proof for it.
        second.sendall(proof(second, "client") + request_of("name", b"content"))
        assert len(read_to_end(second)) <= 32 and not os.listdir(folder)
    first.close()
    second.close()


def test_who_is_silent_is_dropped(folder: Path) -> None:
    server = UploadServer(HOST, SECRET, str(folder), handshake_seconds=0.3)
    begun = time.monotonic()
    with socket.create_connection((HOST, server.port), 20) as plain:
        assert plain.recv(1) == b""
    sock = connected(server.port)
    assert len(read_to_end(sock)) == 32
    dribbling = connected(server.port)
    with contextlib.suppress(OSError):
        for byte in proof(dribbling, "client"):
            dribbling.sendall(bytes([byte]))
            time.sleep(0.05)
    assert len(read_to_end(dribbling)) in (0, 32)
    assert time.monotonic() - begun < 10
    server.close()


def test_a_server_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"secret plans")
    got = bytearray()

    def answer(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        sock.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
        got.extend(sock.recv(65536))
        sock.close()

    with socket.create_server((HOST, 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        with pytest.raises(BulkError, match=r"does not follow the protocol of a gang|broke"):
            put(HOST, listener.getsockname()[1], SECRET, "name", str(tmp_path / "source"))
        thread.join(20)
    assert got and b"secret plans" not in got


# Someone in the middle


class Middle(threading.Thread):
    """Carries bytes between one client and the server, through ``carry(from, to)`` for each direction."""

    def __init__(self, port: int, carry: Callable[[Middle, str, bytes], bytes | None], tls: Path | None = None) -> None:
        super().__init__(daemon=True)
        self._port, self._carry = port, carry
        self._tls = server_context(str(tls)) if tls is not None else None
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.seen = {"up": b"", "down": b""}
        self.bindings: list[bytes | None] = []
        self.start()

    def run(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection((HOST, self._port), 20)
        if self._tls is not None:
            client, server = self._tls.wrap_socket(client, server_side=True), client_context().wrap_socket(server)
            self.bindings = [sock.get_channel_binding("tls-unique") for sock in (client, server)]
        client.settimeout(20)
        up = threading.Thread(target=self._pump, args=("up", client, server), daemon=True)
        up.start()
        self._pump("down", server, client)
        up.join(20)
        client.close()
        server.close()
        self._listener.close()

    def _pump(self, way: str, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.seen[way] += data
                changed = self._carry(self, way, data)
                if changed is None:
                    break
                target.sendall(changed)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


def test_who_opens_the_encryption_is_rejected_by_both(server: UploadServer, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"secret plans")
    middle = Middle(server.port, lambda middle, way, data: data, tls=tmp_path)
    with pytest.raises(BulkError, match="decrypts the connection"):
        put(HOST, middle.port, SECRET, "name", str(tmp_path / "source"))
    middle.join(20)
    assert len(set(middle.bindings)) == 2
    assert b"secret plans" not in middle.seen["up"] and not os.listdir(folder)

    # The server's side of it: a client that proves the secret to the one in the middle without looking at its proof.
    middle = Middle(server.port, lambda middle, way, data: data, tls=tmp_path)
    sock = connected(middle.port)
    sock.sendall(proof(sock, "client") + request_of("name", b"forged"))
    assert len(read_to_end(sock)) <= 32
    middle.join(20)
    assert not os.listdir(folder)


def test_a_byte_that_is_changed_on_the_way_is_noticed(server: UploadServer, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(1_000_000))

    def change(middle: Middle, way: str, data: bytes) -> bytes:
        # Behind the handshake, in the middle of the file.
        if way == "up" and len(middle.seen["up"]) > 200_000 > len(middle.seen["up"]) - len(data):
            return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]
        return data

    middle = Middle(server.port, change)
    with pytest.raises(BulkError):
        put(HOST, middle.port, SECRET, "name", str(tmp_path / "source"))
    middle.join(20)
    assert bytes(1000) not in middle.seen["up"]  # it saw ciphertext
    wait(lambda: os.listdir(folder) == [])


def test_a_transfer_that_is_cut_leaves_what_was_there(server: UploadServer, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(os.urandom(1_000_000))
    (folder / "name").write_bytes(b"as it was")

    def cut(middle: Middle, direction: str, data: bytes) -> bytes | None:
        return None if direction == "up" and len(middle.seen["up"]) > 500_000 else data

    middle = Middle(server.port, cut)
    with pytest.raises(BulkError, match=rf"{HOST} port {middle.port}.*(broke|closed)"):
        put(HOST, middle.port, SECRET, "name", str(tmp_path / "source"))
    middle.join(20)
    wait(lambda: os.listdir(folder) == ["name"])
    assert (folder / "name").read_bytes() == b"as it was"


def test_a_file_that_becomes_shorter_is_not_taken_for_whole(server: UploadServer, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(500_000))
    with proved(server.port) as link, (tmp_path / "source").open("rb") as source:
        link.send_header({"put": "name", "size": 1_000_000})
        link.answer()
        with pytest.raises(BulkError, match="The file became shorter"):
            link.send_file(source, 1_000_000)
    wait(lambda: os.listdir(folder) == [])


def test_the_server_says_why_it_stopped_taking_a_file(tmp_path: Path, folder: Path) -> None:
    """A limit of file sizes stands in for a disk that becomes full meanwhile."""
    code = (
        "import sys, resource, signal; sys.path.insert(0, sys.argv[1]); from guard.tls.uploads import UploadServer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000))\n"
        "server = UploadServer('127.0.0.1', bytes.fromhex(sys.stdin.readline()), sys.argv[2])\n"
        "print(server.port, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, guard_folder(), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(SECRET.hex() + "\n")
    process.stdin.flush()
    port = int(process.stdout.readline())
    (tmp_path / "source").write_bytes(bytes(30_000_000))
    with pytest.raises(BulkError, match="File too large"):
        put(HOST, port, SECRET, "name", str(tmp_path / "source"))
    assert os.listdir(folder) == []
    process.communicate(timeout=20)


def guard_folder() -> str:
    source = uploads.__file__
    assert source is not None
    return str(Path(source).resolve().parent.parent.parent)


def test_the_end_of_a_server_ends_its_transfers(folder: Path, tmp_path: Path) -> None:
    server = UploadServer(HOST, SECRET, str(folder))
    link = proved(server.port)
    link.send_header({"put": "half", "size": 1000})
    link.answer()
    link.send(bytes(500))
    wait(lambda: len(os.listdir(folder)) == 1)
    begun = time.monotonic()
    server.close()
    assert time.monotonic() - begun < 5
    assert os.listdir(folder) == []
    with pytest.raises(BulkError):
        link.answer()
    link.close()
    assert not [thread for thread in threading.enumerate() if thread.name in ("secure", "serve")]


MEMORY = """
import os, resource, sys
sys.path.insert(0, sys.argv[1])
from guard.tls.uploads import UploadServer, put
secret, folder, source = os.urandom(32), sys.argv[2], sys.argv[3]
server = UploadServer("127.0.0.1", secret, folder)
put("127.0.0.1", server.port, secret, "small", __file__ if "__file__" in globals() else sys.executable)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
put("127.0.0.1", server.port, secret, "large", source)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
server.close()
"""


@pytest.mark.uncounted
def test_memory_does_not_grow_with_the_file(folder: Path, tmp_path: Path) -> None:
    """300 MB; both ends are in the process that is measured."""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
    source = tmp_path / "source"
    with open(source, "wb") as file:
        for _ in range(300):
            file.write(os.urandom(1000) * 1000)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", MEMORY, guard_folder(), str(folder), str(source)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert int(done.stdout) < 10_000  # kB
    compared = subprocess.run(["cmp", str(source), str(folder / "large")], timeout=60)
    assert compared.returncode == 0
    for path in (source, folder / "large"):
        path.unlink()


def test_certificates_are_as_openssl_wants_them(tmp_path: Path) -> None:
    """OpenSSL takes key and certificate, and finds the certificate's signature to be the key's."""
    pem = tmp_path / "pem"
    pem.write_text(self_signed("a gang"))
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(pem)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.load_verify_locations(pem)
    trusting.verify_flags |= 0x4000  # X509_V_FLAG_CHECK_SS_SIGNATURE, which the module has no name for
    near, far = socket.socketpair()
    thread = threading.Thread(target=lambda: serving.wrap_socket(far, server_side=True).close())
    thread.start()
    sock = trusting.wrap_socket(near)
    certificate = sock.getpeercert()
    assert certificate and certificate["subject"] == certificate["issuer"] == ((("commonName", "a gang"),),)
    sock.close()
    thread.join(20)
    assert self_signed() != self_signed()


def test_no_key_stays_on_disk(folder: Path) -> None:
    UploadServer(HOST, SECRET, str(folder)).close()
    assert os.listdir(folder) == []

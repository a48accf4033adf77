"""Services in the hosts' network and never on this machine's own addresses."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support.hosts import Host

_CLONE_NEWNET = 0x40000000


def listen(host: Host, address: str = "", port: int = 0) -> socket.socket:
    """A listening socket in a host's network, held by this process: on a free port of its own address unless told.

    A socket stays in the network that it was made in, so a thread goes there, makes it, and ends.
    """
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def make() -> None:
        try:
            with open(f"/proc/{host.pid}/ns/net") as space:
                if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            made.append(socket.create_server((address or host.address, port), backlog=128))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def url_of(listener: socket.socket) -> str:
    """``http://address:port``."""
    address, port = listener.getsockname()[:2]
    return f"http://{address}:{port}"


class Refused(Exception):
    """An answer that is no success: an HTTP status and the JSON that goes with it."""

    def __init__(self, status: int, answer: Any) -> None:
        super().__init__(f"{status}: {answer}")
        self.status, self.answer = status, answer


class JsonServer:
    """A service that answers JSON with JSON. Subclasses say what in :meth:`answer`.

    ``problems`` collects what a client asked wrongly, and :meth:`close` raises it: Metaflow may have gone on.
    """

    headers: dict[str, str] = {}

    def __init__(self, host: Host, address: str = "", port: int = 0) -> None:
        self.problems: list[str] = []
        listener = listen(host, address, port)
        self.url = url_of(listener)
        self._request = threading.local()
        self._http = _Http(listener, self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name=type(self).__name__)
        self._thread.start()

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        """Status and JSON for a request; may raise :class:`Refused`."""
        raise NotImplementedError

    def encode(self, answer: Any) -> bytes:
        """What goes over the wire; a service that answers something else than JSON has its own."""
        return json.dumps(answer).encode()

    @property
    def request_headers(self) -> Message:
        """Those of the request that is being answered, in the thread that answers it."""
        headers: Message = self._request.headers
        return headers

    def upgrade(self, handler: BaseHTTPRequestHandler, path: str, query: dict[str, list[str]]) -> None:
        """Serve a request to go on as a websocket."""
        raise Refused(400, {"message": "no websocket is served here"})

    def close(self) -> None:
        """Stop serving; AssertionError where a client asked what this service does not know."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        assert not self.problems, f"{type(self).__name__} was asked wrongly:\n" + "\n".join(self.problems)


class _Http(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, listener: socket.socket, server: JsonServer) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.json_server = listener, server

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            self.json_server.problems.append(f"while a request of {client_address[0]} was answered: {error!r}")


class _Handler(BaseHTTPRequestHandler):
    # One request a connection: an idle one would keep its thread, and with it close().
    protocol_version = "HTTP/1.0"
    timeout = 20
    server: _Http

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests' output is not the place."""

    def _serve(self) -> None:
        service = self.server.json_server
        service._request.headers = self.headers
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        try:
            if self.headers.get("Upgrade", "").lower() == "websocket":
                service.upgrade(self, parts.path, query)
                return
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = service.answer(self.command, parts.path, query, json.loads(text) if text else None)
        except Refused as refused:
            status, answer = refused.status, refused.answer
        body = service.encode(answer)
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **service.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _serve


S3_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "METAFLOW_S3_WORKER_COUNT": "1",
}
"""What a role would give to a task, of which the server takes any; and no more processes for each read than help here:
Metaflow starts 64."""


@contextlib.contextmanager
def s3_server(host: Host, bucket: str) -> Iterator[str]:
    """The URL of an S3 service on ``host`` that has one bucket."""
    from .s3 import S3  # not where the tests that use it are skipped

    # It accepts on a socket that is open already: what comes before it is ready waits and is not refused.
    with listen(host) as listener, contextlib.closing(S3(listener, bucket)):
        yield url_of(listener)

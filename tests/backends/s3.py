"""S3, played by moto within the tests' own process: to load it anew for each test takes longer than all else there."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        """Nothing: the tests' output is not the place."""


class S3(ThreadedWSGIServer):
    """Serves one bucket on ``listener``, with nothing in it. There is one at a time: its memory is the process's."""

    def __init__(self, listener: socket.socket, bucket: str) -> None:
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].create_bucket(bucket, "us-east-1")
        self._connections: set[socket.socket] = set()
        address, port = listener.getsockname()[:2]
        app = DomainDispatcherApplication(create_backend_app)
        super().__init__(address, port, app, handler=_Quiet, fd=listener.fileno())
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="s3")
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def close(self) -> None:
        """Stop serving and forget all that was stored."""
        self.shutdown()
        self._thread.join()
        for connection in list(self._connections):  # of a client whose machine was lost in the midst of its request
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].reset()

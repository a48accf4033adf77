"""An OTLP collector over HTTP for tests: it keeps what is exported to it."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

Attributes = dict[str, Any]


class Point(NamedTuple):
    """One data point, with what it belongs to."""

    name: str
    unit: str
    kind: str
    value: float
    attributes: Attributes
    resource: Attributes


def _attributes(pairs: Any) -> Attributes:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def points_of(request: Any) -> Iterator[Point]:
    for of_resource in request.resource_metrics:
        resource = _attributes(of_resource.resource.attributes)
        for scope in of_resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                for point in getattr(metric, kind).data_points:
                    value = float(getattr(point, point.WhichOneof("value")))
                    yield Point(metric.name, metric.unit, kind, value, _attributes(point.attributes), resource)


class Collector:
    """Listens at ``endpoint`` on this machine, in threads of its own."""

    def __init__(self, status: int = 200) -> None:
        self.requests: list[list[Point]] = []
        self.headers: list[dict[str, str]] = []
        self.raw = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                request = ExportMetricsServiceRequest.FromString(body)
                assert self.path == "/v1/metrics"
                collector.raw += body
                collector.headers.append(dict(self.headers))
                collector.requests.append(list(points_of(request)))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def of_node(self, node: int) -> list[Point]:
        """The last points that a node has exported."""
        return next(
            (points for points in reversed(self.requests) if points and points[0].resource["gang.node"] == node), []
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

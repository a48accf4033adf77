"""OTLP collectors for tests, over HTTP and gRPC: they keep what is exported to them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)

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


class Received:
    """What was exported: points and headers of each request, and all of its bytes."""

    def __init__(self) -> None:
        self.requests: list[list[Point]] = []
        self.headers: list[dict[str, str]] = []
        self.raw = b""

    def take(self, request: ExportMetricsServiceRequest, headers: dict[str, str]) -> None:
        self.raw += request.SerializeToString()
        self.headers.append(headers)
        self.requests.append(list(points_of(request)))

    def of_node(self, node: int) -> list[Point]:
        """The last points that a node has exported."""
        return next(
            (points for points in reversed(self.requests) if points and points[0].resource["gang.node"] == node), []
        )


class Collector(Received):
    """Listens at ``endpoint`` on this machine for HTTP, in threads of its own."""

    protocol = "http/protobuf"

    def __init__(self, status: int = 200) -> None:
        super().__init__()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                request = ExportMetricsServiceRequest.FromString(body)
                assert self.path == "/v1/metrics"
                collector.take(request, dict(self.headers))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class GrpcCollector(Received):
    """Listens at ``endpoint`` on this machine for gRPC without TLS, in threads of its own."""

    protocol = "grpc"

    def __init__(self) -> None:
        super().__init__()
        collector = self

        class Service(MetricsServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:
                collector.take(request, dict(context.invocation_metadata()))
                return ExportMetricsServiceResponse()

        self._threads = ThreadPoolExecutor(4)
        self._server = grpc.server(self._threads)
        add_MetricsServiceServicer_to_server(Service(), self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.endpoint = f"http://127.0.0.1:{port}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait(10.0)
        self._threads.shutdown()

"""The API server: the calls that Metaflow's client of Kubernetes makes, and no others."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from support.hosts import Host

from ..servers import JsonServer, Refused
from . import schema
from .cluster import Cluster
from .pods import suffix

_PATH = re.compile(
    r"/(?:api/v1|apis/batch/v1|apis/jobset\.x-k8s\.io/v1alpha2)"
    r"/namespaces/(?P<namespace>[^/]+)/(?P<kind>pods|jobs|jobsets)(?:/(?P<name>[^/]+))?(?:/(?P<part>exec))?"
)

_CONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: here, cluster: {{server: "{url}"}}}}]
users: [{{name: me, user: {{}}}}]
contexts: [{{name: here, context: {{cluster: here, user: me}}}}]
current-context: here
"""


def refusal(status: int, reason: str, message: str) -> Refused:
    """An answer that is no success, as Kubernetes words it."""
    return Refused(
        status, {"kind": "Status", "status": "Failure", "code": status, "reason": reason, "message": message}
    )


class KubernetesApi(JsonServer):
    """Serves a :class:`Cluster` on ``host``; every object that is created is checked against its public model."""

    def __init__(self, host: Host, cluster: Cluster) -> None:
        self._cluster = cluster
        super().__init__(host)

    def write_config(self, file: Path) -> None:
        """The file that KUBECONFIG names."""
        file.write_text(_CONFIG.format(url=self.url))

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        match = _PATH.fullmatch(path)
        if match is None:
            self.problems.append(f"{method} {path} is not known")
            raise refusal(404, "NotFound", f"{path} is not known")
        namespace, kind, name, _ = match.groups()
        with self._cluster.lock:
            if method == "POST" and kind != "pods" and name is None:
                return 201, self._create(kind, namespace, body)
            if method == "GET" and kind == "pods" and name is None:
                return 200, self._list_pods(query)
            if kind != "pods" and name is not None:
                return 200, self._one(method, kind, name, body)
        self.problems.append(f"{method} {path} is not known")
        raise refusal(405, "MethodNotAllowed", f"{method} {path} is not known")

    def _create(self, kind: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        problems = schema.check(kind, body)
        if problems:
            self.problems += problems
            raise refusal(422, "Invalid", "; ".join(problems))
        metadata = body["metadata"]
        name = metadata.get("name") or f"{metadata['generateName']}{suffix()}"
        if name in (self._cluster.jobs if kind == "jobs" else self._cluster.jobsets):
            raise refusal(409, "AlreadyExists", f"{kind} {name!r} already exists")
        return self._cluster.create(kind, namespace, name, body).shown()

    def _list_pods(self, query: dict[str, list[str]]) -> dict[str, Any]:
        wanted = [term.split("=") for terms in query.get("labelSelector", []) for term in terms.split(",")]
        barred = [term.split("!=") for terms in query.get("fieldSelector", []) for term in terms.split(",")]
        found = []
        for pod in self._cluster.pods():
            labels = pod.metadata["labels"]
            if all(labels.get(key) == value for key, value in wanted) and ["status.phase", pod.phase] not in barred:
                found.append(pod.shown())
        return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": found}

    def _one(self, method: str, kind: str, name: str, body: Any) -> dict[str, Any]:
        store: dict[str, Any] = self._cluster.jobs if kind == "jobs" else self._cluster.jobsets  # type: ignore[assignment]
        if name not in store:
            raise refusal(404, "NotFound", f"{kind} {name!r} not found")
        found = store[name]
        if method == "PATCH" and body == {"spec": {"parallelism": 0}}:
            found.spec["parallelism"] = 0
            found.stop()
        elif method == "DELETE":
            found.stop()
            del store[name]
        elif method != "GET":
            self.problems.append(f"{method} of {kind} {name} with {body} is not known")
            raise refusal(405, "MethodNotAllowed", f"{method} is not known")
        return dict(found.shown())

    def upgrade(self, handler: BaseHTTPRequestHandler, path: str, query: dict[str, list[str]]) -> None:
        """``exec``: run the command in the pod, and close with its success, over a websocket."""
        match = _PATH.fullmatch(path)
        pods = [pod for pod in self._cluster.pods() if match and pod.name == match["name"]]
        if not pods or not pods[0].container or not pods[0].active or pods[0].lost:
            raise refusal(404, "NotFound", f"{path}: no such pod runs")
        key = handler.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(101)
        handler.send_header("Upgrade", "websocket")
        handler.send_header("Connection", "Upgrade")
        handler.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        handler.send_header("Sec-WebSocket-Protocol", "v4.channel.k8s.io")
        handler.end_headers()
        pods[0].container.run(query["command"])
        status = b'\x03{"metadata":{},"status":"Success"}'  # channel 3 is the status'
        handler.wfile.write(bytes([0x82, len(status)]) + status + b"\x88\x02" + struct.pack("!H", 1000))

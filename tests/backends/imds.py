"""The service at 169.254.169.254 that tells an instance of AWS what it is, and when it will be taken away."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from support.hosts import Host
from support.requirements import require_tool

from .servers import JsonServer, Refused

_ADDRESS, _PORT = "169.254.169.254", 80

_NOTICE_S = 120.0
"""A spot instance is told of its end this long before."""

_TERMINATION = "/latest/meta-data/spot/termination-time"

_INSTANCE = {
    "/latest/meta-data/instance-life-cycle": "spot",
    "/latest/dynamic/instance-identity/document": json.dumps(
        {
            "instanceId": "i-0123456789abcdef0",
            "instanceType": "c5.large",
            "region": "us-east-1",
            "availabilityZone": "us-east-1a",
        }
    ),
}


class InstanceMetadata(JsonServer):
    """A spot instance's, which ``host`` and its containers alone can reach. Answers are text, and need a token."""

    headers = {"Content-Type": "text/plain"}

    def __init__(self, host: Host) -> None:
        self._tokens: set[str] = set()
        self._ends = ""
        host.run([require_tool("ip", "iproute2"), "address", "replace", f"{_ADDRESS}/32", "dev", "lo"])
        super().__init__(host, _ADDRESS, _PORT)

    def take_away(self) -> str:
        """From now on it says when the instance will end, which this gives, too."""
        self._ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + _NOTICE_S))
        return self._ends

    def replace(self) -> None:
        """From now on the host is another instance, which stays."""
        self._ends = ""

    def encode(self, answer: Any) -> bytes:
        return str(answer).encode()

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        if (method, path) == ("PUT", "/latest/api/token"):
            token = uuid.uuid4().hex
            self._tokens.add(token)
            return 200, token
        if method != "GET" or path not in (*_INSTANCE, _TERMINATION):
            self.problems.append(f"{method} {path} is not known")
            raise Refused(404, "Not Found")
        if self.request_headers.get("X-aws-ec2-metadata-token") not in self._tokens:
            raise Refused(401, "Unauthorized")
        if path != _TERMINATION:
            return 200, _INSTANCE[path]
        if not self._ends:
            raise Refused(404, "Not Found")
        return 200, self._ends

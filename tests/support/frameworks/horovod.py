"""A stand-in for Horovod, which takes minutes to build: it has the names of its modules and none of their work."""

from __future__ import annotations

from pathlib import Path

STAND_IN = {
    "__init__.py": "",
    "runner/common/util/hosts.py": """
import collections
Host = collections.namedtuple("Host", "hostname slots")
def parse_hosts(text):
    return [Host(name, int(slots)) for name, slots in (part.split(":") for part in text.split(","))]
def get_host_assignments(hosts, size):
    return [hosts, size]
""",
    "runner/http/http_server.py": """
import json, os, socketserver
from http.server import BaseHTTPRequestHandler, HTTPServer
class RendezvousHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps([self.server.plan, self.server.server_address]).encode())
    def log_message(self, *args):
        pass
class RendezvousHTTPServer(socketserver.ThreadingMixIn, HTTPServer):
    def __init__(self, address, handler, verbose):
        if os.path.exists("taken"):
            os.unlink("taken")
            raise OSError(98, "Address already in use")
        super().__init__(address, handler)
    def init(self, plan):
        self.plan = plan
""",
}


def stand_in(folder: Path) -> Path:
    """A folder for PYTHONPATH with a package that has the names of Horovod's modules."""
    for name, text in STAND_IN.items():
        path = folder / "stand-in" / "horovod" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "stand-in"

"""The server through which the ranks of a Horovod world over gloo find each other: Horovod's own, on one address.

Started as a script on control, ``python -u rendezvous.py ADDRESS PORT HOST:SLOTS,HOST:SLOTS...``; serves until
it is ended. Horovod's ``RendezvousServer`` would listen on every address of the machine, on a port of its own choice.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.path and __file__.startswith(sys.path[0] + "/"):
    # The script's own folder comes first on the path, and has another module horovod.
    del sys.path[0]

import socketserver
from typing import Any

from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts  # type: ignore[import-not-found]
from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer  # type: ignore[import-not-found]


class Server(RendezvousHTTPServer):  # type: ignore[misc]
    """Accepts all ranks at once, and does nothing slow besides what they ask for."""

    request_queue_size = 1024
    daemon_threads = True

    def server_bind(self) -> None:
        """Without the look-up of the address's name, which takes seconds where the resolver is out of reach."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]


def main(address: str, port: str, hosts: str) -> None:
    """Serve the world of these hosts. Raises OSError where the port is not free."""
    slots: list[Any] = parse_hosts(hosts)
    server = Server((address, int(port)), RendezvousHandler, False)
    server.init(get_host_assignments(slots, sum(host.slots for host in slots)))
    print(f"Horovod's rendezvous server is listening on {address}:{port}")
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])

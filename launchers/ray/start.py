"""``ray start``, as a program: ``python start.py HEAD start --block ...``; HEAD is the head's "HOST PORT", or "".

A node that is not the head waits here until the head has itself in its table of nodes. Ray would ask for that seconds
apart, and for minutes where a network lets nothing through; and what takes longest, importing Ray, is done meanwhile.
Standard library and Ray only.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.path and __file__.startswith(sys.path[0] + "/"):
    # The script's own folder comes first on the path, where its neighbours would hide modules of the user.
    del sys.path[0]

import socket
import time

STEP_S = 0.05
"""Between two looks; what happens on another node raises no event here."""

CLOSED_S = 15.0
"""How long the head's machine may not answer at all before that is taken for a network that is closed."""

_CONNECT_S = 5.0


def wait_for(host: str, port: int) -> None:
    """Return once the port is open. Raises SystemExit with a sentence where the head's machine cannot be reached."""
    silent_since = None
    while True:
        started = time.monotonic()
        try:
            socket.create_connection((host, port), timeout=_CONNECT_S).close()
            return
        except ConnectionRefusedError:
            silent_since = None  # the machine answers: its Ray is not up yet
        except OSError as error:
            silent_since = started if silent_since is None else silent_since
            if time.monotonic() - silent_since > CLOSED_S:
                raise SystemExit(
                    f"{host} port {port}, where Ray's head is, cannot be reached from here ({error}). Does a firewall "
                    "or network policy allow connections to all ports between the nodes?"
                ) from None
        time.sleep(STEP_S)


def wait_for_head(address: str) -> None:
    """Return once the head is alive in its table of nodes. What another Ray does not offer is left to ``ray start``."""
    try:
        from ray._raylet import GcsClient

        client = GcsClient(address=address)
        # GcsNodeInfo.state: 0 is ALIVE.
        while not any(node.is_head_node and node.state == 0 for node in client.get_all_node_info().values()):
            time.sleep(STEP_S)
    except Exception:
        return


def main() -> None:
    """Import Ray, wait for the head, and be ``ray``."""
    head = sys.argv.pop(1).split()
    from ray.scripts import scripts

    if head:
        wait_for(head[0], int(head[1]))
        wait_for_head(f"[{head[0]}]:{head[1]}" if ":" in head[0] else ":".join(head))
    sys.argv[0] = "ray"
    scripts.main()


if __name__ == "__main__":
    main()

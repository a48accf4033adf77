"""A switch that loses packets: ``python lossy.py SHARE INTERFACE...`` passes every frame on to all other interfaces,
but not that share of them. It ends with its stdin.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import sys

_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_ALL = 0x0003
_LARGEST = 1 << 17


def main(share: float, names: list[str]) -> None:
    ports: dict[int, socket.socket] = {}
    poll = select.poll()
    for name in names:
        port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
        # What the sending kernel has left to the hardware (checksums, cutting) is left to the receiving one.
        port.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        port.bind((name, 0))
        ports[port.fileno()] = port
        poll.register(port, select.POLLIN)
    poll.register(0, select.POLLIN)
    print("ready", flush=True)
    chance = random.Random(7)
    while True:
        for fd, _ in poll.poll():
            if fd == 0:
                return
            frame, where = ports[fd].recvfrom(_LARGEST)
            if where[2] == socket.PACKET_OUTGOING or chance.random() < share:
                continue
            for other, port in ports.items():
                if other != fd:
                    with contextlib.suppress(OSError):  # its queue is full, or it is down: lost as well
                        port.send(frame)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])

"""The guard's process: ``python -I -S -c BOOT FD PID KIND``, started by ``core/guard_client/link.py``."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from .children.inherited import take_over
from .fault import serve
from .loop.event_loop import Loop
from .processes.process_table import become_subreaper

if TYPE_CHECKING:
    from .node.node import Node
    from .single_node import SingleNode


def main(fd: int, task_pid: int, kind: str) -> int:
    """Serve the task at the other end of socket ``fd`` until it is gone and everything is in order.

    ``kind`` is "node" for a node of a gang, "single-node" for a process that belongs to none.
    """
    take_over()
    # A reader of our output that has gone is no reason to die.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # Ctrl-C is for the task, which reports it; and what ends a whole service or container ends the task too, after
    # which there is much to put in order. A handler, since our children would inherit SIG_IGN.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    become_subreaper()
    loop = Loop()
    sock = socket.socket(fileno=fd)
    if kind == "node":
        from .node.node import Node

        node: Node | SingleNode = Node(loop, sock, task_pid)
    else:
        from .single_node import SingleNode

        node = SingleNode(loop, sock, task_pid)
    return serve(loop, node.has_fault, node.tidy)


if __name__ == "__main__":
    # Threads may still be writing to a reader that has stopped: they must not hold up the end.
    code = main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    os._exit(code)

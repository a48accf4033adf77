"""Gangs of guards whose steps have nothing to do: ``python short_gangs.py NODES ROUNDS SEED``, in plain Python.

Every node is a process with the guard's own loop and its way to the hub, and leaves some moments after the last has
joined, while its neighbours still shake hands. Prints how many gangs there were, and every failure that was told.
"""

from __future__ import annotations

import os
import random
import sys
import traceback
from collections.abc import Callable
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions

from metaflow_extensions.gang.core.guard.hub_link.hub_link import RemoteHubLink
from metaflow_extensions.gang.core.guard.hub_link.local_hub_link import LocalHubLink
from metaflow_extensions.gang.core.guard.loop.event_loop import Loop

GANG = ["F", "1", "s", "2", 0]
HOST = "127.0.0.1"
INFO = {"hostname": "host", "cpus": 1, "gpus": 0}
END_S = 60.0
LONGEST_S = 0.005
"""Of a node's pause before it leaves."""


class Member:
    """What a link to the hub needs of its node; the task is done when the gang is complete."""

    def __init__(self, index: int, tell: Callable[[str], None], pause: float) -> None:
        self.loop, self.index = Loop(), index
        self.link: Any = None
        self._tell, self._pause = tell, pause
        self.loop.call_later(END_S, lambda: self._over("is not done in time"))

    def say(self, line: str) -> None:
        self._tell(f"node {self.index} says {line}")

    def fail(self, failure: Any) -> None:
        self._tell(f"node {self.index} tells {failure.text}")
        self.link.send({"op": "fail", "failure": failure.to_json()})

    def hub_lost(self, text: str, node: int) -> None:
        self._over(f"node {self.index} lost the hub: {text}")

    def from_hub(self, header: dict[str, Any], payload: bytes) -> None:
        if header["op"] == "roster":
            self.loop.call_later(self._pause, self._done)
        elif header["op"] in ("stop", "failure-report"):
            self._over(f"node {self.index} got {header}")
        elif header["op"] == "all-left":
            self.link.close(self.loop.stop)

    def _done(self) -> None:
        self.link.send({"op": "done"})
        if self.index:
            self.link.leave(self.loop.stop)

    def _over(self, text: str) -> None:
        self._tell(text)
        self.loop.stop()


def node(index: int, nodes: int, where: tuple[int, int], tell: Callable[[str], None], pause: float) -> None:
    """One node's guard, until it has left."""
    member = Member(index, tell, pause)
    if index == 0:
        hub = LocalHubLink(member.loop, "/tmp", member.say, member.from_hub, nodes, END_S, GANG, HOST)
        member.link = hub
        for _ in range(nodes - 1):
            os.write(where[1], f"{hub.port:5} {hub.secret.hex()}".encode())
        hub.join({"address": HOST})
    else:
        port, secret = os.read(where[0], 70).decode().split()
        header = {"address": HOST, "port": int(port), "secret": secret, "host": HOST, "identity": GANG, "info": INFO}
        member.link = RemoteHubLink(
            member.loop,
            index,
            {**header, "timeout": END_S},
            member.say,
            member.from_hub,
            member.hub_lost,
            member.fail,
        )
    member.loop.run()


def gang(nodes: int, chance: random.Random) -> list[str]:
    """One gang's life; what went wrong."""
    where, told = os.pipe(), os.pipe()

    def tell(text: str) -> None:
        os.write(told[1], (text + "\n").encode())

    children = []
    for index in range(nodes):
        pause = chance.random() * LONGEST_S
        pid = os.fork()
        if pid == 0:
            try:
                node(index, nodes, where, tell, pause)
            except BaseException:
                tell(traceback.format_exc())
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    os.close(told[1])
    with os.fdopen(told[0]) as stream:
        lines = stream.read().splitlines()
    for fd in where:
        os.close(fd)
    return lines


def main(nodes: int, rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    bad = 0
    for number in range(rounds):
        lines = gang(nodes, chance)
        bad += bool(lines)
        for line in lines:
            print(f"gang {number}: {line}", flush=True)
    print(f"{rounds} gangs of {nodes} nodes: {bad} failed")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))

"""A gang of many nodes on this machine: real guards, a process forked for each task, and no Metaflow run.

``python many_nodes.py FIRST COUNT NODES WORK`` is a number of nodes; :class:`ManyNodes` starts two such programs, of
node 0 and of all others. WORK is a Python file with ``work(gang, order)``, which each node calls with each order.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import metaflow  # noqa: F401 - before any of its extensions

from metaflow_extensions.gang.core.gang.gang import Gang
from metaflow_extensions.gang.core.gang.node import Node
from metaflow_extensions.gang.core.guard_client.link import INTERRUPT, STACKS, Link

LOOPBACK = "127.0.0.1"
SHARED_MEMORY = "/dev/shm"
"""Where the nodes' folders are: hosts have one each, and here all would share one disk."""

JOIN_S = 600.0
_CLONE_NEWNET = 0x40000000


class ManyNodes:
    """``with ManyNodes(9, Path(__file__)) as nodes: replies = nodes.call(kind="broadcast")``.

    Parameters
    ----------
    count : int
        How many nodes.
    work : Path
        A Python file with a function ``work(gang, order)`` that returns what JSON can say.
    hosts : sequence of Host, optional
        Whose networks the nodes use, in their order; the loopback device of this machine else.
    settings : dict, optional
        Of the guards.
    """

    def __init__(
        self, count: int, work: Path, hosts: Sequence[Any] | None = None, settings: dict[str, Any] | None = None
    ) -> None:
        self.count = count
        self._work = str(work.resolve())
        self._places = [[host.address, host.pid] for host in hosts] if hosts else [[LOOPBACK, 0]] * count
        self._settings = settings or {}
        self._programs: list[subprocess.Popen[str]] = []
        self._close = contextlib.ExitStack()

    def __enter__(self) -> ManyNodes:
        with contextlib.ExitStack() as undo:
            undo.callback(self._end)
            base = SHARED_MEMORY if os.path.isdir(SHARED_MEMORY) else None
            self._folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="gang-many-", dir=base))
            self._start(0, 1, {})
            where = json.loads(self._line(self._programs[0]))
            if self.count > 1:
                self._start(1, self.count - 1, where)
            self._close = undo.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._close.close()

    def call(self, **order: Any) -> list[dict[str, Any]]:
        """Have all nodes do ``order``; the reply of each, by node index. AssertionError where a node has failed."""
        stdin = self._programs[0].stdin
        assert stdin is not None
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        replies: dict[int, dict[str, Any]] = {}
        while len(replies) < self.count:
            missing = 0 if 0 not in replies else 1
            reply = json.loads(self._line(self._programs[missing]))
            replies[reply.pop("node")] = reply
        return [replies[node] for node in range(self.count)]

    def _start(self, first: int, count: int, where: dict[str, Any]) -> None:
        argv = [sys.executable, __file__, str(first), str(count), str(self.count), self._work]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._programs.append(process)
        assert process.stdin is not None
        about = {"where": where, "places": self._places, "folder": self._folder, "settings": self._settings}
        process.stdin.write(json.dumps(about) + "\n")
        process.stdin.flush()

    def _line(self, process: subprocess.Popen[str]) -> str:
        """The next line that a node itself has written; what its ranks write comes the same way."""
        assert process.stdout is not None
        while line := process.stdout.readline():
            if line.startswith("{"):
                return line
        raise AssertionError("A node has ended early; its message is above.")

    def _end(self) -> None:
        for process in self._programs:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for process in self._programs:
            assert process.stdout is not None
            process.stdout.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# -- the nodes ---------------------------------------------------------------------------------------------------------


def _tell(**what: Any) -> None:
    os.write(1, (json.dumps(what) + "\n").encode())  # at once, since many processes write to one pipe


def _enter_network(pid: int) -> None:
    """Move this process into the network of process ``pid`` (os.setns is of Python 3.12)."""
    with open(f"/proc/{pid}/ns/net") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns of {pid}")


def _node(index: int, count: int, about: dict[str, Any], work: Callable[[Gang, dict[str, Any]], Any]) -> None:
    """One node, until node 0's standard input has ended."""
    address, pid = about["places"][index]
    if pid:
        _enter_network(pid)
    os.environ["METAFLOW_GANG_ID"] = f"many-{os.path.basename(about['folder'])}.{index}"
    folder = os.path.join(about["folder"], str(index))
    os.mkdir(folder, 0o700)
    link = Link()
    link.request(
        "setup",
        node=index,
        folder=folder,
        gang_id=os.environ["METAFLOW_GANG_ID"].rpartition(".")[0],
        number=link.number,
        interrupt_signal=int(INTERRUPT),
        stacks_signal=int(STACKS),
        settings=about["settings"],
    )
    gang = _joined(index, count, about["where"], address, folder, link)
    while (order := gang.broadcast(_next_order() if index == 0 else None)) is not None:
        _tell(node=index, **(work(gang, order) or {}))
    link.request("done")
    link.request("bye")
    link.close()
    shutil.rmtree(folder, ignore_errors=True)


def _joined(index: int, count: int, where: dict[str, Any], address: str, folder: str, link: Link) -> Gang:
    about = {"identity": ["Many", "1", "work", "1", 0], "timeout": JOIN_S, "host": address}
    if index == 0:
        where, _ = link.request("open", num_nodes=count, **about)
        if "error" in where:
            raise SystemExit(where["error"])
        where = {key: where[key] for key in ("address", "port", "secret")}
        _tell(**where)
    info = {"hostname": f"host-{index}", "cpus": 1, "gpus": 0}
    header, _ = link.request("join", info=info, **about, **where)
    nodes = [Node(at, one["address"], one["hostname"], 1, 0) for at, one in enumerate(header["nodes"])]
    return Gang(index, tuple(nodes), folder, link)


def _next_order() -> dict[str, Any] | None:
    line = sys.stdin.readline()
    return json.loads(line) if line else None


def main(first: int, count: int, nodes: int, path: str) -> None:
    stdin: IO[str] = sys.stdin
    about = json.loads(stdin.readline())
    work = runpy.run_path(path)["work"]
    if count == 1:
        _node(first, nodes, about, work)
        return
    children = {}
    for index in range(first, first + count):
        pid = os.fork()
        if pid == 0:
            try:
                _node(index, nodes, about, work)
            except BaseException as error:
                print(f"node {index}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        children[pid] = index
    for pid in children:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])  # type: ignore[call-arg]

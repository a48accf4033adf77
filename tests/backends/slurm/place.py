"""A workplace with a Slurm: where a flow runs ``--with slurm`` on a login node, with its files on a shared disk."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from support.flows import flow_environment
from support.hosts import Host
from support.leaks import MARK
from support.processes import Process, descendants, send_signal
from support.remote import RemoteTask
from support.slurm.cluster import Slurm

from ..workplace import Workplace

_HOLD = """#!/bin/sh
# Before each task: one that is held back never starts in its first attempt.
if rm {folder}/hold-$SLURM_PROCID 2>/dev/null; then sleep 1000; fi
"""

NODE_TASK = "node_task.py"


class Node:
    """The task of one node in one attempt, on the host that runs it. ``output`` outlives its log."""

    def __init__(self, host: Host, streams: list[IO[bytes]]) -> None:
        self.host, self.hostname, self._streams = host, host.name, streams

    @property
    def output(self) -> str:
        """What it has written so far, as it is stored."""
        text = b""
        for stream in self._streams:
            stream.seek(0)
            text += stream.read()
        return text.decode("utf-8", "replace")

    def parent(self) -> Process:
        """The process that srun has started, below which the task is."""
        found = [one for one in self.host.processes() if any(word.endswith(NODE_TASK) for word in one.command)]
        return next(one for one in found if one.command[0] != "srun" and "-I" in one.command[:3])

    def task(self) -> Process:
        """The task's own process."""
        return next(one for one in descendants(self.parent().pid) if "step" in one.command)

    def kill(self) -> None:
        """SIGKILL to all of it at once."""
        for process in (parent := self.parent(), *descendants(parent.pid)):
            send_signal(process, 9)


class SlurmPlace(Workplace):
    """Each of its machines holds one node at a time.

    Parameters
    ----------
    machines : int
    options
        Of :class:`Slurm`.

    Attributes
    ----------
    slurm : Slurm
    """

    decorator = "slurm"
    packages = ()
    has_images = False

    def __init__(
        self,
        stack: contextlib.ExitStack,
        folder: Path,
        image: object,
        machines: int,
        settings: str = "",
        **options: Any,
    ) -> None:
        # Neither S3 nor a metadata service: a site has a file system that all nodes see.
        self.folder, self._stack = folder, stack
        prolog = folder / "prolog"
        prolog.write_text(_HOLD.format(folder=folder))
        prolog.chmod(0o755)
        self.slurm = stack.enter_context(Slurm(machines, settings=f"TaskProlog={prolog}\n{settings}", **options))
        self.hosts, self.machines = self.slurm.hosts, self.slurm.nodes
        self.datastore = folder / "datastore"
        self.env = flow_environment(
            {
                "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(self.datastore),
                "PYTHONUNBUFFERED": "1",
                "SLURM_CONF": self.slurm.env["SLURM_CONF"],
                "PATH": self.slurm.env["PATH"],
                MARK: os.environ.get(MARK),
            }
        )
        self._nodes: dict[tuple[Path, int], Node] = {}

    def container(self, index: int, attempt: int) -> Any:
        for folder in sorted(self.datastore.glob(f".metaflow/slurm/*/*/*-{attempt}"), key=os.path.getmtime):
            with contextlib.suppress(OSError, ValueError, StopIteration):
                if len(json.loads((folder / "spec.json").read_text())["nodes"]) > 1:
                    self._see(folder, index)
        found = [node for (folder, at), node in self._nodes.items() if at == index and _attempt(folder) == attempt]
        return found[-1] if found else None

    def _see(self, folder: Path, index: int) -> None:
        if (folder, index) in self._nodes:
            return
        paths = [folder / f"node-{index}" / stream for stream in ("stdout", "stderr")]
        if all(path.exists() for path in paths):
            own = str(folder)
            host = next(
                self.hosts[number]
                for number in self.machines
                if any(own in one.command and str(index) == _rank(one) for one in self.hosts[number].processes())
            )
            self._nodes[folder, index] = Node(host, [self._stack.enter_context(path.open("rb")) for path in paths])

    def lose(self, node: Node) -> None:
        """The machine goes, all at once; Slurm takes a while to notice."""
        self.hosts.kill(node.host.index)

    def hold_back(self, index: int) -> None:
        """This node's task is never started in the first attempt."""
        (self.folder / f"hold-{index}").touch()

    def task_logs(self, execution: RemoteTask, index: int, attempt: int = 0) -> str:
        """What the user reads as the log of a node's own task, once the run has ended."""
        stored = next(self.datastore.glob(".metaflow/*/[0-9]*/*/*_node_1"), None)
        assert stored is not None, f"no gang has stored anything: {execution.dump()}"
        control = f"{stored.parent.name}/{stored.name.removesuffix('_node_1')}"
        return self.logs(execution, control + (f"_node_{index}" if index else ""), attempt)

    def wait_gone(self, since: float, what: str, timeout: float = 60.0) -> None:
        """Wait until Slurm has no job and the nodes have no process of one; print the seconds since ``since``."""
        deadline = time.monotonic() + timeout
        jobs_s = left_s = 0.0
        while not (jobs_s and left_s):
            jobs_s = jobs_s or (0.0 if self.slurm.jobs() else time.monotonic() - since)
            left_s = left_s or (0.0 if self.slurm.left() else time.monotonic() - since)
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: left after {timeout:g} s: {self.slurm.left()}\n{self.slurm.logs()}")
        print(f"{what}: no job after {jobs_s:.1f} s, no process after {left_s:.1f} s")

    def __str__(self) -> str:
        """All nodes' logs and Slurm's, for an assertion's message."""
        logs = [f"{folder.name}, node {index}:\n{node.output}" for (folder, index), node in self._nodes.items()]
        return "\n".join([*logs, self.slurm.logs()])


def _attempt(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _rank(process: Process) -> str:
    """The number that srun has given a process."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"SLURM_PROCID="):
                return entry.partition(b"=")[2].decode()
    return ""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Any]:
    """Call it with what :class:`SlurmPlace` takes from ``machines`` on."""
    with contextlib.ExitStack() as stack:
        yield lambda machines, **options: SlurmPlace(stack, tmp_path, None, machines, **options)

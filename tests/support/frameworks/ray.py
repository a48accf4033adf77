"""Ray clusters in tests: one that is not the gang's, the processes of one that is, and proof that nothing is left."""

from __future__ import annotations

import glob
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ..flows import FlowRun, flow_environment
from ..leaks import DEADLINE
from ..processes import Process, all_processes
from ..trees import Tree

START_S = 120.0
"""For a cluster to be up and a flow's body to run, on a machine that is busy with other tests."""

END_S = 25.0
"""For a run to end after it was struck: tells an end from a hang."""

RAY_VARIABLES = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR")

_STEP = 0.05  # Neither a folder that vanishes nor a Ray that forgets a node raises an event.

_ASK = """
import ray, sys
ray.init(address=sys.argv[1], logging_level="error")
@ray.remote
def double(number):
    return 2 * number
assert ray.get([double.remote(number) for number in range(3)]) == [0, 2, 4]
assert len([node for node in ray.nodes() if node["Alive"]]) == 1
assert not [name for name in ray.cluster_resources() if name in ("node:0", "node:1", "node:2")]
print("the other cluster works;")
"""


def folders() -> set[str]:
    """The folders for Ray's own files that gangs of this machine have."""
    bases = {tempfile.gettempdir(), "/tmp"}
    return {path for base in bases for path in glob.glob(os.path.join(glob.escape(base), "gang-ray-*"))}


def users_of(folder: str) -> list[Process]:
    """The processes that have the folder in their command line."""
    return [process for process in all_processes().values() if folder in " ".join(process.command)]


@contextmanager
def no_ray_leaks() -> Iterator[None]:
    """Fail where the block leaves a folder of Ray's; one in which another test's cluster lives is not meant."""
    before = folders()
    yield
    deadline = time.monotonic() + DEADLINE
    while left := [folder for folder in sorted(folders() - before) if not users_of(folder)]:
        if time.monotonic() > deadline:
            pytest.fail(f"left behind {DEADLINE:g} s after the end: {', '.join(left)}", pytrace=False)
        time.sleep(_STEP)


def ray_processes(run: FlowRun, name: str) -> dict[int, int]:
    """Pids of a run's "raylet", "gcs_server" or other program of Ray's by the index of the node that it runs on."""
    found: dict[int, int] = {}
    for process in run.below():
        if process.command and os.path.basename(process.command[0]) == name:
            index = re.search(r"/gang-ray-[0-9a-f]+-(\d+)\b", " ".join(process.command))
            assert index is not None and int(index[1]) not in found, process
            found[int(index[1])] = process.pid
    return found


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class OtherRay:
    """A Ray cluster of the user's own, of one node, in a folder of its own; it is up when this returns."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        port, client_port = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        argv = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        argv += ["--node-ip-address", "127.0.0.1", "--port", str(port), "--ray-client-server-port", str(client_port)]
        argv += ["--temp-dir", folder, "--num-cpus", "1", "--include-dashboard", "false"]
        argv += ["--object-store-memory", str(80 << 20)]
        self._env = flow_environment({name: None for name in RAY_VARIABLES})
        self._tree = Tree(argv, env=self._env)
        try:
            self._tree.wait_for("Ray runtime started.", START_S)
            self._daemons = self._running()
        except BaseException:
            self.close()
            raise

    def _running(self) -> set[tuple[int, int]]:
        names = ("raylet", "gcs_server")
        return {
            (process.pid, process.start)
            for process in self._tree.below()
            if process.command and os.path.basename(process.command[0]) in names
        }

    def works(self) -> None:
        """Insist that it is the same as in the beginning, and that tasks run on it."""
        assert len(self._daemons) == 2 and self._running() == self._daemons, self._tree.dump()
        argv = [sys.executable, "-c", _ASK, self.address]
        asked = subprocess.run(argv, env=self._env, capture_output=True, text=True, timeout=START_S, check=False)
        assert asked.returncode == 0 and "the other cluster works;" in asked.stdout, asked.stdout + asked.stderr

    def close(self) -> None:
        """End it."""
        self._tree.close()


@contextmanager
def other_ray() -> Iterator[OtherRay]:
    """A Ray cluster that is none of the gang's, for the length of the block."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray-") as folder:  # Ray's sockets have no room elsewhere
        other = OtherRay(folder)
        try:
            yield other
        finally:
            other.close()

"""What an @mpi step leaves on its hosts and on the machine: nothing, however it ends."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from support.frameworks.mpi import MPICH, OPEN_MPI_4, path_with
from support.hosts import Host
from support.machine.accounts import account, open_folder
from support.remote import RemoteGang, remote_gang
from support.requirements import require_tool
from support.snapshots import looks

pytestmark = pytest.mark.slow

END_S = 60.0
"""Tells an end from a hang, on a machine that is busy."""

FLOW = """
import os
from metaflow import FlowSpec, current, mpi, resources, step

class Remote(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @resources(cpu=2)
    @mpi(transport=os.environ.get("TRANSPORT", "auto"))
    @step
    def work(self):
        current.mpi.run(program="python ranks.py")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Remote()
"""

RANKS = """
import os, time
from mpi4py import MPI

world = MPI.COMM_WORLD
# Through shared memory between the two of a node, and over the network.
assert world.allreduce(world.rank) == 15
print(f"rank {world.rank} is ready;", flush=True)
while not world.allreduce(os.path.exists("finish")):
    time.sleep(0.1)
"""


def files_of(host: Host, folder: Path) -> list[str]:
    """Everything that lies below a folder as the host sees it, but for folders."""
    done = host.run(["find", str(folder), "-mindepth", "1", "!", "-type", "d"], cwd="/")
    return sorted(str(done.stdout).splitlines())


def mpis_in_tmp() -> set[str]:
    """What an MPI leaves there whatever TMPDIR says; everybody else's files come and go."""
    return {name for name in os.listdir("/tmp") if re.match(r"hydra|mpich|ompi|openmpi|prte|pmix|psm|ucx", name)}


def hosts_of(gang: RemoteGang) -> list[Host]:
    return [gang.hosts[index] for index in range(gang.num_nodes)]


@pytest.mark.parametrize("killed", [False, True], ids=["to its end", "control killed"])
@pytest.mark.parametrize(
    ("kind", "transport", "user"),
    [(OPEN_MPI_4, "ssh", "root"), (OPEN_MPI_4, "channel", "ganger"), (MPICH, "ssh", "ganger")],
)
def test_the_machine_is_as_before(kind: str, transport: str, user: str, killed: bool) -> None:
    require_tool("find", "findutils")
    if transport == "ssh":
        require_tool("sshd", "openssh-server")
    with open_folder() as folder:
        who = account(user, folder)
        home = Path("/root") if who is None else Path(who.home)
        (folder / "ranks.py").write_text(RANKS)
        watched = [Path("/etc"), *(home / name for name in (".ssh", ".bashrc", ".profile", ".openmpi"))]
        with remote_gang(folder, FLOW, 3, account=who) as gang:
            before, in_tmp = looks(*watched), mpis_in_tmp()
            shared = {host.name: files_of(host, Path("/dev/shm")) for host in hosts_of(gang)}
            tasks = gang.start_all(PATH=path_with(kind), TRANSPORT=transport, PYTHONUNBUFFERED="1")
            for rank in range(6):
                tasks[0].wait_for(f"rank {rank} is ready;")
            assert looks(*watched) == before, "while it runs"
            temporary = [gang.folder / "tmp" / host.name for host in hosts_of(gang)]
            held = [files_of(host, place) for host, place in zip(hosts_of(gang), temporary, strict=True)]
            assert all(held), "each node has its gang's files, which must go"
            if killed:
                tasks[0].kill()
                for task in tasks[1:]:
                    assert "on node 0 (gang0)" in task.fails(END_S)
            else:
                (folder / "finish").touch()
                for task in tasks:
                    task.ok(END_S)
            gang.wait_until_gone()
            for host, place in zip(hosts_of(gang), temporary, strict=True):
                assert files_of(host, Path("/dev/shm")) == shared[host.name]
                assert files_of(host, place) == []
            assert looks(*watched) == before
            assert mpis_in_tmp() == in_tmp

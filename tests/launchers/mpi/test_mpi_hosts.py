"""@mpi on hosts of their own: each MPI over each transport, as root and as an ordinary user."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from support.frameworks.mpi import MPICH, OPEN_MPI_4, OPEN_MPI_5, path_with
from support.machine.accounts import account, open_folder
from support.paths import ROOT
from support.remote import remote_gang
from support.requirements import require_tool

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples" / "mpi"
END_S = 150.0
"""For a step of some seconds, on a machine that is busy: tells an end from a hang."""

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
        print("hosts", current.mpi.hosts)
        os.environ["FROM_THE_BODY"] = "a'; echo foo"
        current.mpi.run(program="python hello_ranks.py")
        product = os.path.join(current.gang.folder, "product.npy")
        current.mpi.exec(["-n", "8"], ["python", "matrix_product.py"], [64, product], {"OPENBLAS_NUM_THREADS": "1"})
        # Each host has a /dev/shm of its own: where the program does not come, no rank can start it.
        current.mpi.cc("-O2 -o pi pi.c")
        current.mpi.broadcast_file("pi", to="/dev/shm/pi")
        current.mpi.run(program="/dev/shm/pi 1000000")
        show = "from mpi4py import MPI; import os; e = os.environ.get; world = MPI.COMM_WORLD; "
        show += "seen = world.gather('; '.join([e('FROM_THE_BODY'), e('HERE'), e('TMPDIR'), os.getcwd()])); "
        show += "print(*('rank sees; ' + one for one in seen or ()), sep=chr(10))"
        current.mpi.run(program=["python", "-c", show])
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


CASES = [
    (OPEN_MPI_4, "ssh", "root"),
    (OPEN_MPI_4, "channel", "ganger"),
    (OPEN_MPI_5, "channel", "root"),
    (MPICH, "ssh", "ganger"),
    (MPICH, "channel", "root"),
    # Each took its turn above in another pair.
    pytest.param(OPEN_MPI_4, "ssh", "ganger", marks=pytest.mark.big),
    pytest.param(OPEN_MPI_4, "channel", "root", marks=pytest.mark.big),
    pytest.param(OPEN_MPI_5, "ssh", "ganger", marks=pytest.mark.big),
    pytest.param(MPICH, "ssh", "root", marks=pytest.mark.big),
    pytest.param(MPICH, "channel", "ganger", marks=pytest.mark.big),
]


@pytest.mark.parametrize(("kind", "transport", "user"), CASES)
def test_four_hosts_compute_together(kind: str, transport: str, user: str) -> None:
    if transport == "ssh":
        require_tool("sshd", "openssh-server")
    with open_folder() as folder:
        who = account(user, folder)
        for name in ("hello_ranks.py", "matrix_product.py", "pi.c"):
            shutil.copy(EXAMPLES / name, folder)
        with remote_gang(folder, FLOW, 4, account=who) as gang:
            env = {"PATH": path_with(kind), "TRANSPORT": transport}
            control, *others = [gang.start(node, HERE=f"node {node}", **env) for node in range(4)]
            said = control.ok(END_S)
            for task in others:
                task.ok(END_S)
            check(
                said, kind, transport, folder, [host.address for host in (gang.hosts[1], gang.hosts[2], gang.hosts[3])]
            )


def check(said: str, kind: str, transport: str, folder: Path, others: list[str]) -> None:
    """What control's task has to have printed."""
    assert kind.rstrip(" 45") in said and ("by ssh" if transport == "ssh" else "without ssh") in said
    assert f"hosts {tuple(others)}" in said
    ranks = re.findall(r"^rank (\d) of 8 on (gang\d)$", said, re.MULTILINE)
    assert sorted(rank for rank, _ in ranks) == [str(rank) for rank in range(8)], said
    assert Counter(host for _, host in ranks) == {f"gang{index}": 2 for index in range(4)}
    assert re.search(r"^8 ranks, largest error \S+$", said, re.MULTILINE)
    assert "pi is 3.1415926536 by 8 ranks\n" in said
    seen = re.findall(r"^rank sees; a'; echo foo; (node \d); (.*); (.*)$", said, re.MULTILINE)
    assert Counter(seen) == {(f"node {index}", f"{folder}/tmp/gang{index}", str(folder)): 2 for index in range(4)}

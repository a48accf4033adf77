"""The calls of the older package's examples, and of those who move a command line over, under each MPI."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from support.flows import FlowRunner
from support.frameworks.mpi import ALL, path_with
from support.machine.accounts import open_folder
from support.remote import remote_gang

pytestmark = pytest.mark.slow

END_S = 150.0
"""For a step of some seconds, on a machine that is busy: tells an end from a hang."""

SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOBID": "77",
    "SLURM_NODELIST": "elsewhere[1-2]",
    "SLURM_JOB_NODELIST": "elsewhere[1-2]",
    "SLURM_NNODES": "2",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_CPUS_PER_NODE": "2(x2)",
    "SLURM_NTASKS": "4",
    "SLURM_NPROCS": "4",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "0",
    "SLURM_CPUS_ON_NODE": "2",
}
"""A job of Slurm whose nodes are not the gang's. There is no srun on this machine."""

HELLO = """
#include <mpi.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv) {
    char host[256];
    int rank, size;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    gethostname(host, sizeof host);
    printf("%s: rank %d of %d on %s\\n", argc > 1 ? argv[1] : "hello", rank, size, host);
    MPI_Finalize();
    return 0;
}
"""

STEPS = """
    @step
    def start(self):
        self.next(self.work, num_parallel=NODES)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Old()
"""

REMOTE = """
import os
import shutil
from metaflow import FlowSpec, current, mpi, resources, step

N_CPU, N_NODES, NODES = 2, 3, 3

class Old(FlowSpec):
    @resources(cpu=N_CPU)
    @mpi
    @step
    def work(self):
        current.mpi.cc(args=["-o", "mpi_hello_world_binary", "mpi_hello_world.c"])
        current.mpi.broadcast_file("mpi_hello_world_binary")
        current.mpi.exec(
            args=["-n", str(N_CPU * N_NODES), "--allow-run-as-root"],
            program="mpi_hello_world_binary",
        )
        os.chdir("analytical_apps")
        current.mpi.exec(
            args=["-n", str(N_CPU * N_NODES), "--allow-run-as-root", "--hostfile", "/metaflow/hostfile.txt"],
            program="./run_app",
            program_args=["old hostfile", "--out_prefix", "./output"],
        )
        # Each host has a /dev/shm of its own.
        shutil.copy("run_app", "/dev/shm/only_here")
        current.mpi.exec(args=["-n", "6"], program="/dev/shm/only_here")
        self.next(self.join)
"""


@pytest.mark.parametrize("kind", ALL)
def test_the_old_examples_by_bare_name_and_with_the_old_hostfile(kind: str) -> None:
    """In a job of Slurm, whose nodes and whose srun no MPI takes; a program that is on node 0 alone is told as that."""
    with open_folder() as folder:
        (folder / "mpi_hello_world.c").write_text(HELLO)
        (folder / "analytical_apps").mkdir()
        (folder / "analytical_apps" / "run_app").symlink_to(folder / "mpi_hello_world_binary")
        with remote_gang(folder, REMOTE + STEPS, 3) as gang:
            env = {"PATH": path_with(kind), **SLURM}
            tasks = [gang.start(node, **env) for node in range(3)]
            said = tasks[0].fails(END_S)
            for task in tasks[1:]:
                task.fails(END_S)
        for what in ("hello", "old hostfile"):
            ranks = re.findall(rf"^{what}: rank (\d) of 6 on (gang\d)$", said, re.MULTILINE)
            assert sorted(rank for rank, _ in ranks) == list("012345"), said
            assert Counter(host for _, host in ranks) == {"gang0": 2, "gang1": 2, "gang2": 2}
        assert re.search(r"/metaflow/hostfile\.txt is not written any more: mpirun gets this gang's own, /\S+", said)
        assert re.search(r"Node [12] has no program '/dev/shm/only_here'\. current\.mpi\.broadcast_file\(\)", said), (
            said
        )
        assert re.search(r"rank [2-5]\b.*, running /dev/shm/only_here, exited with code 127", said), said


LOCAL = """
import os
from metaflow import FlowSpec, current, mpi, resources, step
from metaflow.exception import MetaflowException

NODES = 2

class Old(FlowSpec):
    @resources(cpu=1)
    @mpi
    @step
    def work(self):
        run = current.mpi.run
        current.mpi.cc("-o hello hello.c")
        # Whose number of ranks is more than the hostfile has slots.
        run(["-n", "3", "--hostfile", current.mpi.hostfile], "hello own-hostfile")
        run(f"-n 3 --hostfile={current.mpi.hostfile}", ["./hello", "with-equals"])
        # A program of the name of a shell's builtin, and one whose name the PATH has too.
        os.link("hello", "local")
        os.link("hello", "true")
        run(["-n", "2"], "local builtin")
        run(["-n", "2"], "true nothing")
        show = "import sys; from mpi4py import MPI; text = sys.stdin.read(); "
        show += "seen = MPI.COMM_WORLD.gather(text); print(*(f'stdin is {one!r}' for one in seen or ()), sep=chr(10))"
        with open("in.txt", "w") as file:
            file.write("from a file")
        run(["-n", "2"], ["python", "-c", show], stdin="in.txt")
        run(["-n", "2"], ["python", "-c", show], stdin=b"from bytes")
        run(["-n", "2"], ["python", "-c", show])
        count = ["python", "-c", "import sys; print(len(sys.stdin.buffer.read()), 'bytes')"]
        run(["-n", "1"], count, stdin=b"x" * 3_000_000)
        for arguments in (
            {"program": "nowhere"},
            {"program": "./nowhere"},
            {"program": "./hello.c"},
            {"program": "python helo.py"},
            {"program": "hello < in.txt"},
            {"program": "hello", "program_args": "a && b"},
            {"program": "hello", "stdin": "nowhere.txt"},
            {"program": "hello", "stdin": 3},
        ):
            try:
                run(["-n", "2"], **arguments)
            except MetaflowException as error:
                print("refused:", error)
        self.next(self.join)
"""

REFUSED = [
    r"There is no program 'nowhere', neither on the PATH nor in /\S+\. Check its name",
    r"There is no program /\S+/nowhere\. Check its name",
    r"/\S+/hello\.c cannot be run: it is not executable",
    r"There is no script /\S+/helo\.py\. Did you mean hello\.py",
    r"program has < outside of quotes: 'hello < in\.txt'\. No shell runs it.* Give the file as stdin=",
    r"program_args has & outside of quotes: 'a && b'\. No shell runs it.* Put it into a script",
    r"stdin: /\S+/nowhere\.txt is not there",
    r"stdin is a int: give the path of a file, or its content as bytes",
]


@pytest.mark.parametrize("kind", ALL)
def test_programs_stdin_and_what_only_a_shell_understands(flow_run: FlowRunner, kind: str) -> None:
    """On one machine, in a job of Slurm too."""
    run = flow_run(
        LOCAL + STEPS,
        env={"PATH": path_with(kind), **SLURM},
        files={"hello.c": HELLO, "hello.py": ""},
    ).ok(END_S)
    for what, size in (("own-hostfile", 3), ("with-equals", 3), ("builtin", 2)):
        ranks = re.findall(rf"\b{what}: rank (\d) of {size} on ", run.output)
        assert sorted(ranks) == [str(rank) for rank in range(size)], run.output
    assert "nothing: rank" not in run.output, "the PATH comes first"
    assert sorted(re.findall(r"stdin is '(.*)'", run.output)) == ["", "", "", "", "from a file", "from bytes"]
    assert "3000000 bytes" in run.output
    refused = re.findall(r"refused: (.*)", run.output)
    assert len(refused) == len(REFUSED), refused
    for said, expected in zip(refused, REFUSED, strict=True):
        assert re.search(expected, said), said

"""Dry runs on two hosts, and of a Ray cluster: what is shown of each node is what that node starts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from dry_runs import SEEN, Command, alike, compare, ranks, shown
from support.flows import FlowRunner
from support.frameworks.mpi import MPICH, OPEN_MPI_4, path_with
from support.frameworks.ray import no_ray_leaks
from support.remote import remote_gang
from support.requirements import require_packages, require_tool

pytestmark = pytest.mark.slow

END_S = 240.0
"""For a framework to be imported many times over, on a machine that is busy: tells an end from a hang."""

FLOW = """
import json, os
from metaflow import FlowSpec, current, resources, step, IMPORTED

class Dry(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @resources(cpu=2)
    @DECORATOR
    @step
    def work(self):
        with open(f"environ-{current.gang.node_index}", "w") as file:
            json.dump(dict(os.environ), file)
        CALL, dry_run=True)
        assert not [name for name in os.listdir() if name.startswith("rank-")], "a dry run starts nothing"
        CALL)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Dry()
"""


def run_on_two_hosts(folder: Path, decorator: str, call: str, **env: str) -> tuple[list[Command], dict[int, Any]]:
    """What node 0 shows of both nodes, and what the ranks of the second call have seen."""
    (folder / "seen.py").write_text(SEEN)
    text = FLOW.replace("IMPORTED", decorator.partition("(")[0])
    with remote_gang(folder, text.replace("DECORATOR", decorator).replace("CALL", call), 2) as gang:
        control, other = gang.start_all(**env)
        said = control.ok(END_S)
        other.ok(END_S)
    return shown(said), ranks(folder)


def environ_of(folder: Path, node: int) -> dict[str, str]:
    """The environment of a node's body."""
    found: dict[str, str] = json.loads((folder / f"environ-{node}").read_text())
    return found


@pytest.mark.parametrize("transport", ["none", "channel"])
def test_ranks_of_deepspeed(tmp_path: Path, transport: str) -> None:
    require_packages("deepspeed")
    if transport != "none":
        require_tool("pdsh", "pdsh")
    call = 'current.deepspeed.run(None, "seen.py", {"text": "two words"}'
    commands, found = run_on_two_hosts(tmp_path, f'deepspeed(transport="{transport}")', call)
    each = {one.node: one for one in commands if one.title.startswith("each rank")}
    launchers = {one.node: one for one in commands if one.title == "deepspeed"}
    hostfiles = [one.file for one in commands if one.title.startswith("hostfile")]
    assert hostfiles == ["node0 slots=2\nnode1 slots=2\n"] * 2
    assert list(launchers) == ([0, 1] if transport == "none" else [0])
    assert "--master_addr=10.77.0.10" in launchers[0].argv
    assert [rank["node"] for rank in found.values()] == [0, 0, 1, 1]
    own = DEEPSPEEDS_OWN if transport == "none" else rf"{DEEPSPEEDS_OWN}|{OF_THE_CHANNEL}"
    for rank in found.values():
        node, number = rank["node"], rank["environ"]["LOCAL_RANK"]
        launcher = launchers[node if transport == "none" else 0]
        argv = [word.replace("--local_rank=N", f"--local_rank={number}") for word in each[node].argv]
        both = Command(node, "", argv, {**launcher.environ, **each[node].environ})
        compare(environ_of(tmp_path, node), both, "", rank, own)


DEEPSPEEDS_OWN = (
    r"RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_SIZE|CROSS_\w+|MASTER_\w+|CUDA_VISIBLE_DEVICES|TORCHELASTIC_\w+|PYTHONPATH"
    r"|DS_\w+|OMP_NUM_THREADS|PYTORCH_\w+|KMP_\w+"
)
"""What DeepSpeed's launcher sets for each rank, and scikit-learn (KMP_*), which the launcher imports."""

OF_THE_CHANNEL = r"PATH|PWD|OLDPWD|SHLVL|_|PDSH_\w+|HYDRA_\w+|OMPI_\w+|PRTE_\w+|METAFLOW_GANG_FOLDER"
"""What lets DeepSpeed's launcher reach the other node, and what the shell there sets."""


@pytest.mark.parametrize("kind", [OPEN_MPI_4, MPICH])
def test_ranks_of_mpirun(tmp_path: Path, kind: str) -> None:
    call = 'current.mpi.run(["-n", "4"], "python seen.py", ["--text", "two words"], env={"SIZE": "3"}'
    commands, found = run_on_two_hosts(tmp_path, "mpi", call, PATH=path_with(kind))
    command, hostfile = commands
    assert command.node == 0
    assert re.fullmatch(r"10\.77\.0\.10[ :](slots=)?2\n10\.77\.0\.11[ :](slots=)?2\n", hostfile.file)
    assert hostfile.title.partition(" ")[2] in command.argv
    assert [rank["node"] for rank in found.values()] == [0, 0, 1, 1]
    for number in (0, 1):
        compare(environ_of(tmp_path, 0), command, "mpirun", found[number], MPIS_OWN)
    # The body runs on node 0 alone. A rank on node 1 has the same command, and all that was shown, and besides only
    # what is the node's own.
    there = re.compile(rf"{MPIS_OWN}|MF_\w+|METAFLOW_GANG_\w+")
    of_node_0 = {name: value for name, value in found[0]["environ"].items() if not there.fullmatch(name)}
    assert of_node_0["SIZE"] == "3" and "MPI4PY_LIBMPI" in of_node_0
    for number in (2, 3):
        assert found[number]["argv"] == found[0]["argv"]
        of_node_1 = {name: value for name, value in found[number]["environ"].items() if not there.fullmatch(name)}
        assert of_node_1 == of_node_0


MPIS_OWN = (
    r"OMPI_\w+|ORTE_\w+|PMIX?_\w+|HYD\w+|MPI_\w+|MPIR\w+|PRTE_\w+|OPAL_\w+|IPATH\w*|GFORTRAN\w*|HFI\w*|RDMAV\w*"
    r"|TMPDIR|METAFLOW_MPI_TMPDIR|METAFLOW_GANG_FOLDER|TORCHELASTIC_ERROR_FILE|PATH|(DY)?LD_LIBRARY_PATH|PWD|OLDPWD|SHLVL|_"
)
"""What mpirun and its shells set for each rank."""


RAY = """
import os
from metaflow import FlowSpec, metaflow_ray, resources, step

def read(pid, name):
    with open(f"/proc/{pid}/{name}") as file:
        return file.read()

def environ(pid):
    return dict(pair.split("=", 1) for pair in read(pid, "environ").split("\\0") if "=" in pair)

def parent(pid):
    return read(pid, "stat").rpartition(")")[2].split()[1]

class Dry(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @resources(cpu=1, memory=2000, shared_memory=100)
    @metaflow_ray(heartbeat_timeout=7)
    @step
    def work(self):
        self.body, self.started = dict(os.environ), {}
        port = self.body["RAY_ADDRESS"].rpartition(":")[2]
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                argv = read(pid, "cmdline").split("\\0")[:-1]
            except OSError:
                continue
            if "--node-name" in argv and any(word in (port, self.body["RAY_ADDRESS"]) for word in argv):
                seen = {"argv": argv, "environ": environ(pid), "task": environ(parent(parent(pid)))}
                self.started.setdefault(argv[argv.index("--node-name") + 1], []).append(seen)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.body, self.started = inputs[0].body, inputs[0].started
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Dry()
"""


def test_ray_is_started_as_a_whole_dry_run_shows(flow_run: FlowRunner) -> None:
    require_packages("ray")
    dry = flow_run(RAY, env={"METAFLOW_GANG_DRY_RUN": "1"}).fails(END_S)
    commands = shown(dry)
    with no_ray_leaks():
        run = flow_run(RAY).ok(END_S)
    started = run.artifact("join", "started")
    assert [one.node for one in commands] == [0, 1]
    for command in commands:
        (seen,) = started[f"node{command.node}"]
        assert of_any_cluster(seen["argv"]) == of_any_cluster(command.argv)
        # The gang says to each process of a node whose it is.
        added = {
            name: value
            for name, value in seen["environ"].items()
            if seen["task"].get(name) != value and not name.startswith("METAFLOW_GANG_")
        }
        # Values of variables that are named like secrets are not shown.
        assert {name: "***" if command.environ.get(name) == "***" else value for name, value in added.items()} == (
            command.environ
        )
        assert command.environ["RAY_AUTH_MODE"] == "token"
        assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED"} <= added.keys()
    head, worker = commands
    assert '"health_check_period_ms": 700' in " ".join(head.argv) and "--address" in worker.argv


def of_any_cluster(argv: list[str]) -> list[str]:
    """A command line without what is another in each cluster: ports, and the name of the gang's folder."""
    return [re.sub(r"/gang-ray-[0-9a-f]+-", "/gang-ray-ID-", alike(word)) for word in argv]

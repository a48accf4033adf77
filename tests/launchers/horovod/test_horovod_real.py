"""The real Horovod: it trains over gloo on hosts of its own, and its own launcher tells its ranks what we tell them.

It is built where it is not installed, which takes minutes, and only once for each Python and torch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import metaflow  # noqa: F401 - first: Metaflow loads the extensions' namespace
import pytest
from support.flows import FlowRunner
from support.paths import ROOT, TESTS
from support.remote import remote_gang
from support.requirements import require_packages, require_tool

from metaflow_extensions.gang.launchers.horovod.plan import horovod_environment

ROOT = ROOT
EXAMPLES = ROOT / "examples" / "mpi"
BUILT = ROOT / ".test-all" / "horovod"
RUN_S = 300.0
"""For a flow to end: real ranks that outnumber the cores of a busy machine wait for each other."""

# The first test waits for the build.
pytestmark = [pytest.mark.big, pytest.mark.timeout(3600)]


@pytest.fixture(scope="session")
def real() -> str:
    """What to put on PYTHONPATH for the real Horovod; built where it is not installed, which takes minutes."""
    if importlib.util.find_spec("horovod") is not None:
        return ""
    require_packages("torch")
    require_tool("g++", "g++")
    require_tool("make", "make")
    script = TESTS / "tools" / "build_horovod.sh"
    built = subprocess.run(
        [str(script), sys.executable, str(BUILT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert built.returncode == 0, built.stdout[-8000:]
    return built.stdout.splitlines()[-1]


def path_with(first: str) -> str:
    return os.pathsep.join(filter(None, [first, os.environ.get("PYTHONPATH", "")]))


OWN_LAUNCHER = """
import json, sys
from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
from horovod.runner.gloo_run import create_run_env_vars, create_slot_env_vars
slots = json.loads(sys.argv[1])
hosts = parse_hosts(",".join("host%d:%d" % pair for pair in enumerate(slots)))
shared = create_run_env_vars("10.0.0.1", ["eth0"], 20001)
world = [{**create_slot_env_vars(slot), **shared} for slot in get_host_assignments(hosts, sum(slots))]
print(json.dumps([{name: str(value) for name, value in rank.items()} for rank in world]))
"""


@pytest.mark.parametrize("slots", [[1], [2, 2], [1, 3, 2], [4, 1, 1, 4]], ids=str)
def test_the_variables_are_those_of_horovods_own_launcher(real: str, slots: list[int]) -> None:
    told = subprocess.run(
        [sys.executable, "-c", OWN_LAUNCHER, json.dumps(slots)],
        env={**os.environ, "PYTHONPATH": path_with(real)},
        capture_output=True,
        text=True,
        check=True,
    )
    names = [f"host{index}" for index in range(len(slots))]
    ours = horovod_environment(names, slots, ["eth0"] * len(slots), "10.0.0.1", 20001)
    assert ours == json.loads(told.stdout)


def test_the_example_learns_the_digits(real: str, flow_run: FlowRunner) -> None:
    run = flow_run(EXAMPLES / "horovod_digits.py", env={"PYTHONPATH": path_with(real)}).ok(RUN_S)
    assert run.artifact("end", "ranks") == 4
    assert run.artifact("end", "accuracy") >= 0.95
    assert re.search(r"test accuracy 9\d\.\d%, learned by 4 ranks", run.output)


REAL_RANK = """
import json, os, signal, sys, time
import horovod.torch as hvd
import torch
hvd.init()
total = hvd.allreduce(torch.tensor([float(hvd.rank() + 1), 10.0]), op=hvd.Sum)
who = (hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size(), hvd.cross_rank(), hvd.cross_size())
print(f"rank {who[0]}: {who} sums {total.tolist()} on {os.uname().nodename}", flush=True)
for number in range(1000 if sys.argv[1] != "nothing" else 3):
    if hvd.rank() == 3 and number == 100:
        if sys.argv[1] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("loss is nan")
    hvd.allreduce(torch.ones(1000))
hvd.shutdown()
"""

REAL_FLOW = """
import os
from metaflow import FlowSpec, current, gang, horovod_run, step

class Real(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @gang
    @step
    def work(self):
        happens = os.environ["HAPPENS"]
        horovod_run("rank.py", [happens], nproc_per_node=2)
        if happens == "nothing":
            model = os.path.join(current.gang.folder, "model.pt")
            horovod_run(os.environ["TRAINS"], {"epochs": 20, "model": model}, nproc_per_node=2)
            if current.gang.is_control:
                import torch
                print("accuracy", torch.load(model, weights_only=True)["accuracy"])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Real()
"""


def real_environment(real: str, happens: str) -> dict[str, str]:
    return {"PYTHONPATH": path_with(real), "HAPPENS": happens, "TRAINS": str(EXAMPLES / "horovod_train.py")}


def test_two_hosts_sum_and_train(real: str, tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(REAL_RANK)
    with remote_gang(tmp_path, REAL_FLOW, 2) as gang:
        nodes = gang.start_all(**real_environment(real, "nothing"))
        outputs = [node.ok(RUN_S) for node in nodes]
    for rank in range(4):
        node, local = divmod(rank, 2)
        who = (rank, 4, local, 2, node, 2)
        assert f"[rank {rank}] rank {rank}: {who} sums [10.0, 40.0] on gang{node}\n" in outputs[node]
    assert "HOROVOD_GLOO_IFACE=eth0" in outputs[0]
    accuracy = re.search(r"accuracy ([\d.]+)", outputs[0])
    assert accuracy is not None and float(accuracy[1]) >= 0.95


@pytest.mark.parametrize(
    ("happens", "cause"), [("killed", r"rank 3 .*SIGKILL"), ("raises", r"rank 3 (exited with code 1|raised)")]
)
def test_the_rank_that_failed_first_is_blamed(real: str, tmp_path: Path, happens: str, cause: str) -> None:
    (tmp_path / "rank.py").write_text(REAL_RANK)
    with remote_gang(tmp_path, REAL_FLOW, 2) as gang:
        nodes = gang.start_all(**real_environment(real, happens))
        outputs = [node.fails(RUN_S) for node in nodes]
    for output in outputs:
        assert re.search(cause, output), output
        assert ("ValueError: loss is nan" in output) == (happens == "raises")
    assert "The first failure was on node 1" in outputs[0]

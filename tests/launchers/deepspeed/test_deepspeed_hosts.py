"""@deepspeed on hosts of their own, with the real DeepSpeed: what it learns, who may see what, and how it fails."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hosts import Host
from support.paths import ROOT
from support.processes import Process, own_pid, send_signal
from support.remote import RemoteGang, RemoteTask, remote_gang
from support.requirements import require_packages, require_tool

EXAMPLES = ROOT / "examples" / "deepspeed"

END_S = 240.0
"""For DeepSpeed to be imported by launchers and ranks, and its extension to be built, on a machine that is busy."""

FAILED_S = 30.0
LOST_S = 15.0

BIG = pytest.mark.big

FLOW = """
import json, os
from metaflow import FlowSpec, current, deepspeed, resources, step

SECRET = "s3cr3t" + "-of-the-step"

def returned(number):
    import torch.distributed as dist
    import deepspeed
    deepspeed.init_distributed(dist_backend="gloo")
    return [number, dist.get_rank(), os.uname().nodename]

class Remote(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @resources(cpu=2)
    @deepspeed(transport=os.environ.get("TRANSPORT", "auto"))
    @step
    def work(self):
        # Names that DeepSpeed's launcher would write on the command lines of other programs.
        os.environ.update(MLFLOW_TRACKING_PASSWORD=SECRET, NCCL_SECRET=SECRET, ANY_SECRET=SECRET)
        how = os.environ["HOW"]
        if how == "train":
            for stage in json.loads(os.environ["STAGES"]):
                self.train(stage)
        else:
            args = {"deepspeed": None, "deepspeed_config": {"train_batch_size": 4}}
            current.deepspeed.run(entrypoint="ranks.py", entrypoint_args={**args, "how": how})
            print("returned", json.dumps(current.deepspeed.run(entrypoint=returned, entrypoint_args=[7])))
            files = [name for name in os.listdir(current.gang.folder) if name.startswith("deepspeed-")]
            print("left in the gang's folder:", files)
        self.next(self.join)

    def train(self, stage):
        config = {
            "train_micro_batch_size_per_gpu": 16,
            "optimizer": {"type": "Adam", "params": {"lr": 3e-3, "torch_adam": True}},
            "zero_optimization": {"stage": stage},
        }
        args = {"deepspeed_config": config, "checkpoints": f"zero-{stage}", "model": f"model-{stage}.pt", "epochs": 20}
        current.deepspeed.run(entrypoint="train_zero.py", entrypoint_args={"deepspeed": None, **args})

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
import argparse, os, sys, time
import deepspeed, torch
import torch.distributed as dist

parser = argparse.ArgumentParser()
parser.add_argument("--local_rank", type=int, required=True)
parser.add_argument("--how")
args = deepspeed.add_config_arguments(parser).parse_args()
deepspeed.init_distributed(dist_backend="gloo")
rank = dist.get_rank()
assert os.environ["ANY_SECRET"] == os.environ["MLFLOW_TRACKING_PASSWORD"] and os.path.exists(args.deepspeed_config)
print(f"rank {rank} on {os.uname().nodename} is process {os.getpid()};", flush=True)
dist.barrier()
if args.how == "raise" and rank == 3:
    raise ValueError("of rank 3")
finished = torch.tensor(args.how == "return", dtype=torch.int)
while not finished:
    time.sleep(0.1)
    finished[...] = os.path.exists("finish")
    dist.broadcast(finished, 0)  # as rank 0 sees it: ranks that looked at different times would not agree
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the nodes work, with the scripts that they run."""
    require_packages("deepspeed", "sklearn")
    require_tool("g++", "g++")
    shutil.copy(EXAMPLES / "train_zero.py", tmp_path)
    (tmp_path / "ranks.py").write_text(RANKS)
    yield tmp_path


def needs(transport: str) -> None:
    if transport != "none":
        require_tool("pdsh", "pdsh")
    if transport == "ssh":
        require_tool("sshd", "openssh-server")


def started(gang: RemoteGang, how: str, transport: str, **env: str) -> list[RemoteTask]:
    return gang.start_all(HOW=how, TRANSPORT=transport, PYTHONUNBUFFERED="1", **env)


def with_ranks(gang: RemoteGang, how: str, transport: str) -> tuple[list[RemoteTask], list[int]]:
    """Every node's task with all four ranks at work, and the ranks' process ids on their hosts."""
    tasks = started(gang, how, transport)
    pids = []
    for rank in range(4):
        reporting = tasks[0 if transport != "none" else rank // 2]
        pids.append(int(reporting.wait_for(re.compile(rf"rank {rank} on gang{rank // 2} is process (\d+);"), END_S)[1]))
    return tasks, pids


def rank_process(host: Host, pid: int) -> Process:
    """The process that calls itself so on its host."""
    for process in host.processes():
        if own_pid(process.pid) == pid:
            return process
    raise AssertionError(f"process {pid} is not on {host.name}")


@pytest.mark.slow
def test_digits_are_learned_by_two_hosts(folder: Path) -> None:
    assert min(trained(folder, "none", [1])) >= 0.95


@BIG
@pytest.mark.timeout(1500)  # six trainings
def test_the_transports_and_stages_agree(folder: Path) -> None:
    import torch

    weights: dict[str, Any] = {}
    for transport in ("none", "ssh", "channel"):
        needs(transport)
        assert min(trained(folder, transport, [1, 3])) >= 0.95
        for stage in (1, 3):
            weights[f"{transport} {stage}"] = torch.load(folder / f"model-{stage}.pt", weights_only=True)
            shutil.rmtree(folder / f"zero-{stage}")
        shutil.rmtree(folder / "datastore")
    first = weights["none 1"]
    for name, others in weights.items():
        for key, tensor in others.items():
            assert torch.allclose(tensor, first[key], atol=1e-3), f"{key} of {name}"


def trained(folder: Path, transport: str, stages: list[int]) -> list[float]:
    """The accuracy with each of ZeRO's stages, learned by two hosts with two ranks each."""
    with remote_gang(folder, FLOW, 2) as gang:
        tasks = started(gang, "train", transport, STAGES=json.dumps(stages))
        said = tasks[0].ok(END_S)
        tasks[1].ok(END_S)
    results = [float(found) for found in re.findall(r'\{"accuracy": ([\d.]+)\}', said)]
    assert len(results) == len(stages), said
    print(f"by {transport}: accuracy {results}, last losses {re.findall(r'epoch 19: loss ([0-9.]+)', said)}")
    return results


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["channel", pytest.param("none", marks=BIG), pytest.param("ssh", marks=BIG)])
def test_secrets_stay_where_they_are(folder: Path, transport: str) -> None:
    needs(transport)
    secret = "s3cr3t" + "-of-the-step"
    with remote_gang(folder, FLOW, 2) as gang:
        tasks, _ = with_ranks(gang, "wait", transport)
        for host in (gang.hosts[0], gang.hosts[1]):
            shown = [" ".join(process.command) for process in host.processes()]
            assert any("deepspeed.launcher" in line for line in shown)
            assert not [line for line in shown if secret in line]
        open_to_others = [path for path in holders(folder, secret) if path.stat().st_mode & 0o077]
        shown = [line for path in open_to_others for line in path.read_text().splitlines() if secret in line]
        assert open_to_others == [], f"while it runs: {shown}"
        lines = [path.read_text() for path in folder.rglob("deepspeed-1-*-hostfile")]
        assert lines == ["node0 slots=2\nnode1 slots=2\n"] * 2
        (folder / "finish").touch()
        said = [task.ok(END_S) for task in tasks]
    for index, output in enumerate(said):
        assert "left in the gang's folder: []" in output and secret not in output
        (value,) = re.findall(r"^returned (.*)$", output, re.MULTILINE)
        ranks = range(4) if index == 0 else range(2, 4)
        assert json.loads(value) == [[7, rank, f"gang{rank // 2}"] for rank in ranks]
    assert holders(folder, secret) == []


def holders(folder: Path, secret: str) -> list[Path]:
    """The files below a folder that hold the secret. (The flow says it in two pieces.)"""
    found = []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and secret.encode() in path.read_bytes():
                found.append(path)
        except FileNotFoundError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["none", pytest.param("ssh", marks=BIG), pytest.param("channel", marks=BIG)])
def test_a_rank_that_raises(folder: Path, transport: str) -> None:
    needs(transport)
    with remote_gang(folder, FLOW, 2) as gang:
        tasks = started(gang, "raise", transport)
        said = [task.fails(END_S) for task in tasks]
        for output in said:
            assert "rank 3" in output and "ValueError: of rank 3" in output, output
        output = said[transport != "none"]
        assert re.search(r"first failure was on node 1 \(gang1\): rank 3 exited with code 1", output), output


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["channel", pytest.param("ssh", marks=BIG), pytest.param("none", marks=BIG)])
def test_a_rank_that_is_killed(folder: Path, transport: str) -> None:
    needs(transport)
    with remote_gang(folder, FLOW, 2) as gang:
        tasks, pids = with_ranks(gang, "wait", transport)
        since = time.monotonic()
        assert send_signal(rank_process(gang.hosts[1], pids[2]), 9)
        said = [task.fails(FAILED_S) for task in tasks]
        print(f"a killed rank, {transport}: ended after {time.monotonic() - since:.1f} s")
        for output in said:
            assert re.search(r"rank 2\b.* was killed by SIGKILL", output), output


@pytest.mark.slow
@pytest.mark.parametrize("transport", [pytest.param("none", marks=BIG), pytest.param("ssh", marks=BIG), "channel"])
def test_a_host_that_is_killed(folder: Path, transport: str) -> None:
    needs(transport)
    with remote_gang(folder, FLOW, 2) as gang:
        tasks, _ = with_ranks(gang, "wait", transport)
        since = time.monotonic()
        gang.kill_host(1)
        output = tasks[0].fails(LOST_S)
        print(f"a killed host, {transport}: ended after {time.monotonic() - since:.1f} s")
        assert re.search(r"node 1 \(gang1\).*has died", output, re.IGNORECASE), output

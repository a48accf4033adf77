"""Horovod over gloo: what its ranks are told, and flows with a stand-in for Horovod.

Building Horovod takes minutes. The stand-in has the names of its modules and does nothing of its work: these tests show
that ranks, variables and the server come together, not that Horovod trains. test_horovod_real.py, which `make test-all`
runs, builds the real one, lets it train, and compares the variables with those of its own launcher.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import metaflow  # first: Metaflow loads the extensions' namespace
import pytest
from support.flows import FlowRunner
from support.frameworks.horovod import stand_in

from metaflow_extensions.gang.core.exceptions import BadAttribute, ToolMissing
from metaflow_extensions.gang.core.gang.gang import Gang
from metaflow_extensions.gang.core.gang.node import Node
from metaflow_extensions.gang.core.ranks.functions import RANK_MAIN
from metaflow_extensions.gang.launchers.horovod import run as horovod
from metaflow_extensions.gang.launchers.horovod.plan import horovod_environment, plan, unique_names

SERVER = Path(horovod.__file__).with_name("rendezvous.py")
RUN_S = 240.0
"""For a flow to end, on a machine that is busy with other tests."""

# ---------------------------------------------------------------- what a rank is told


def world(slots: list[int], interface: str | None = "eth0") -> list[dict[str, str]]:
    names = [f"host{index}" for index in range(len(slots))]
    return horovod_environment(names, slots, [interface] * len(slots), "10.0.0.1", 20001)


def numbers(variables: dict[str, str]) -> tuple[int, ...]:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")
    return tuple(int(variables[f"HOROVOD_{name}"]) for name in names)


def test_two_nodes_with_two_ranks_each() -> None:
    ranks = world([2, 2])
    assert [numbers(rank) for rank in ranks] == [
        (0, 4, 0, 2, 0, 2),
        (1, 4, 1, 2, 0, 2),
        (2, 4, 0, 2, 1, 2),
        (3, 4, 1, 2, 1, 2),
    ]
    assert ranks[2] == {
        "HOROVOD_HOSTNAME": "host1",
        "HOROVOD_RANK": "2",
        "HOROVOD_SIZE": "4",
        "HOROVOD_LOCAL_RANK": "0",
        "HOROVOD_LOCAL_SIZE": "2",
        "HOROVOD_CROSS_RANK": "1",
        "HOROVOD_CROSS_SIZE": "2",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "10.0.0.1",
        "HOROVOD_GLOO_RENDEZVOUS_PORT": "20001",
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_IFACE": "eth0",
        "NCCL_SOCKET_IFNAME": "eth0",
    }


def test_across_nodes_only_those_count_that_have_such_a_rank() -> None:
    assert [numbers(rank) for rank in world([1, 3, 2])] == [
        (0, 6, 0, 1, 0, 3),
        (1, 6, 0, 3, 1, 3),
        (2, 6, 1, 3, 0, 2),
        (3, 6, 2, 3, 0, 1),
        (4, 6, 0, 2, 2, 3),
        (5, 6, 1, 2, 1, 2),
    ]


def test_an_interface_that_nobody_knows_is_left_to_gloo() -> None:
    (rank,) = world([1], interface=None)
    assert {"HOROVOD_GLOO_IFACE", "NCCL_SOCKET_IFNAME"}.isdisjoint(rank)


def test_nodes_on_one_machine_have_names_of_their_own() -> None:
    assert unique_names(["a", "b.example.org"]) == ["a", "b.example.org"]
    assert unique_names(["here", "here"]) == ["here-node0", "here-node1"]
    # What Horovod's own format, and the address of its server, cannot hold.
    assert unique_names(["a:1/é", "b"]) == ["a-1--", "b"]


def test_the_ranks_of_a_node() -> None:
    environ = {"PATH": "/bin", "HOROVOD_RANK": "7", "HOROVOD_GLOO_IFACE": "ib0", "HOROVOD_CPU_OPERATIONS": "mpi"}
    made = plan(["train.py", "--lr", "1"], world([1, 2])[1:], environ, "/private/horovod-20001")
    assert [(process.title, process.rank, process.label) for process in made.processes] == [
        ("rank 1", 1, "[rank 1] "),
        ("rank 2", 2, "[rank 2] "),
    ]
    process = made.processes[1]
    assert process.argv == (sys.executable, "-u", RANK_MAIN, "--script", "train.py", "--lr", "1")
    assert process.env == {
        **world([1, 2])[2],
        "PATH": "/bin",
        # The user's.
        "HOROVOD_GLOO_IFACE": "ib0",
        "HOROVOD_CPU_OPERATIONS": "mpi",
        "TORCHELASTIC_ERROR_FILE": "/private/horovod-20001-rank-2-error.json",
    }
    (alone,) = plan(["train.py"], world([1]), {}, "").processes
    assert alone.label == ""


# What ranks of Horovod 0.28.1 and torch 2.13 wrote whose peer had ended, over gloo between hosts.
LEFT = """
During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "train.py", line 12, in <module>
    hvd.allreduce(torch.ones(10), name="a")
  File "horovod/torch/mpi_ops.py", line 1290, in synchronize
    raise HorovodInternalError(e)
horovod.common.exceptions.HorovodInternalError: Horovod has been shut down. This was caused by an exception on one of \
the ranks or an attempt to allreduce, allgather or broadcast a tensor after one of the ranks finished execution. If \
the shutdown was caused by an exception, you should see the exception in the log before the first shutdown message.
"""
ABORTED = "terminate called after throwing an instance of 'gloo::IoException'\n  what():  "
STORE = "[/build/horovod/common/gloo/http_store.cc:54] "
TCP = "[/build/third_party/gloo/gloo/transport/tcp/"
PEER_LOST = {
    "ended, or raised": LEFT,
    "killed in hvd.init()": f"{ABORTED}{TCP}pair.cc:589] Read error [10.0.0.2]:8592: Connection reset by peer\n",
    "gone before hvd.init() was through": f"{ABORTED}{TCP}pair.cc:799] connect [10.0.0.2]:932: Connection refused\n",
    "stopped": f"{ABORTED}{TCP}unbound_buffer.cc:81] Timed out waiting 4000ms for recv operation to complete\n",
    "never there": f"{ABORTED}{STORE}{STORE}Wait timeout after 8 seconds for key(s): 1. You may want to increase the "
    "timeout via HOROVOD_GLOO_TIMEOUT_SECONDS\n",
}
OWN_FAULT = (
    "ValueError: loss is nan",
    f"{ABORTED}{TCP}device.cc:79] Unable to find address for: eth7\n",
    "horovod.common.exceptions.HorovodInternalError: Mismatched allreduce tensor shapes: One rank sent a tensor of",
)


@pytest.mark.parametrize("output", PEER_LOST.values(), ids=PEER_LOST)
def test_who_has_lost_a_peer_is_not_to_blame(output: str) -> None:
    assert any(re.search(pattern, output) for pattern in plan(["train.py"], world([1]), {}, "").peer_lost)


@pytest.mark.parametrize("output", OWN_FAULT)
def test_who_has_failed_on_its_own_is(output: str) -> None:
    assert not any(re.search(pattern, output) for pattern in plan(["train.py"], world([1]), {}, "").peer_lost)


# ---------------------------------------------------------------- what is not valid


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """``current`` as in the body of a gang of one node, which no check gets as far as to ask anything."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")

    def enter(address: str = "127.0.0.1", **besides: Any) -> None:
        gang = Gang(0, (Node(0, address, "here", 2, 0),), str(tmp_path), None)  # type: ignore[arg-type]
        for name, value in {"gang": gang, **besides}.items():
            monkeypatch.setattr(type(metaflow.current), name, property(lambda _, v=value: v), raising=False)

    return enter


def test_outside_of_a_gang(inside: Callable[..., None]) -> None:
    with pytest.raises(BadAttribute, match=r"outside of a gang.*@gang"):
        horovod.horovod_run("train.py")


def test_in_a_step_whose_body_runs_on_control_alone(inside: Callable[..., None]) -> None:
    inside(mpi=object())
    with pytest.raises(BadAttribute, match=r"Use @gang instead of @mpi.*current\.mpi\.run"):
        horovod.horovod_run("train.py")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"entrypoint": "nothing.py"}, "There is no script .*nothing.py"),
        ({"entrypoint": print}, "runs a script, not a builtin_function_or_method"),
        ({"entrypoint_args": {"": 1}}, "entrypoint_args: "),
        ({"nproc_per_node": 0}, "1 or more"),
        ({"nproc_per_node": True}, "1 or more"),
        ({"nproc_per_node": "two"}, "1 or more"),
        ({"nproc_per_node": "gpu"}, "this node has no GPU"),
        ({"env": {"A": 1}}, "names and values are strings"),
        ({"env": {"HOROVOD_RANK": "1"}}, "every rank has a HOROVOD_RANK of its own"),
    ],
)
def test_arguments_that_cannot_be_meant(inside: Callable[..., None], arguments: dict[str, Any], says: str) -> None:
    inside()
    with pytest.raises(BadAttribute, match=says):
        horovod.horovod_run(**{"entrypoint": "train.py", **arguments})


def test_without_horovod(inside: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inside()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ToolMissing, match="HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1"):
        horovod.horovod_run("train.py", nproc_per_node="2")
    (tmp_path / "horovod.py").write_text("")
    importlib.invalidate_caches()
    with pytest.raises(BadAttribute, match=r"horovod\.py hides the package"):
        horovod.horovod_run("train.py")


def test_without_ipv4(inside: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inside(address="fd00::1")
    (tmp_path / "horovod").mkdir()
    (tmp_path / "horovod" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadAttribute, match=r"IPv4 alone.*fd00::1"):
        horovod.horovod_run("train.py")


# ---------------------------------------------------------------- with a stand-in

STAND_IN_RANK = """
import json, os, sys, urllib.request
mine = {name: value for name, value in os.environ.items() if name.startswith(("HOROVOD_", "NCCL_"))}
server = "http://%s:%s/" % (mine["HOROVOD_GLOO_RENDEZVOUS_ADDR"], mine["HOROVOD_GLOO_RENDEZVOUS_PORT"])
served = json.load(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(server))
with open(os.path.join(sys.argv[1], "call%s-rank%s.json" % (sys.argv[2], mine["HOROVOD_RANK"])), "w") as file:
    json.dump({"variables": mine, "served": served, "argv": sys.argv[1:]}, file)
if mine["HOROVOD_RANK"] == sys.argv[3]:
    raise ValueError("loss is nan")
print("rank", mine["HOROVOD_RANK"], "is done")
"""

STAND_IN_FLOW = """
from metaflow import FlowSpec, Parameter, current, gang, horovod_run, step

class StandIn(FlowSpec):
    fails = Parameter("fails", default="nobody")
    out = Parameter("out")

    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @gang
    @step
    def train(self):
        # Two ranks on node 0 and one on node 1; then a world of another shape, with a server of its own.
        for call, more in enumerate([1, 0]):
            horovod_run(
                "rank.py",
                [self.out, call, self.fails],
                nproc_per_node=1 + more * (1 - current.gang.node_index),
                env={"HOROVOD_GLOO_IFACE": "the users"} if call else None,
            )
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    StandIn()
"""


def path_with(first: Path) -> str:
    return os.pathsep.join(filter(None, [str(first), os.environ.get("PYTHONPATH", "")]))


def test_a_server_whose_port_is_taken_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        done = subprocess.run(
            [sys.executable, str(SERVER), "127.0.0.1", str(holder.getsockname()[1]), "a:1"],
            env={**os.environ, "PYTHONPATH": path_with(stand_in(tmp_path))},
            capture_output=True,
            text=True,
            timeout=RUN_S,
        )
    assert done.returncode == 1
    assert horovod.ADDRESS_IN_USE in done.stderr


@pytest.mark.slow
def test_ranks_and_server_come_together_with_a_stand_in(flow_run: FlowRunner, tmp_path: Path) -> None:
    """The server's first port is taken by another program."""
    out = tmp_path / "out"
    out.mkdir()
    run = flow_run(
        STAND_IN_FLOW,
        *("--out", str(out)),
        env={"PYTHONPATH": path_with(stand_in(tmp_path)), "HOROVOD_RANK": "of another world"},
        files={"rank.py": STAND_IN_RANK, "taken": ""},
    ).ok(RUN_S)
    assert not (run.folder / "taken").exists()
    said = {path.stem: json.loads(path.read_text()) for path in sorted(out.iterdir())}
    assert list(said) == ["call0-rank0", "call0-rank1", "call0-rank2", "call1-rank0", "call1-rank1"]
    ports = []
    for call, slots in enumerate([[2, 1], [1, 1]]):
        hosts, (address, port) = said[f"call{call}-rank0"]["served"][0][0], said[f"call{call}-rank0"]["served"][1]
        names = [name for name, _ in hosts]
        assert [count for _, count in hosts] == slots and len(set(names)) == 2
        assert address == "127.0.0.1", "the server listens where the gang's nodes are, and nowhere else"
        ports.append(port)
        interface = "the users" if call else "lo"
        expected = horovod_environment(names, slots, [interface] * 2, "127.0.0.1", port)
        if call:
            for variables in expected:
                variables["NCCL_SOCKET_IFNAME"] = "lo"
        assert [said[f"call{call}-rank{rank}"]["variables"] for rank in range(sum(slots))] == expected
        assert said[f"call{call}-rank0"]["argv"] == [str(out), str(call), "nobody"]
    assert len(set(ports)) == 2
    assert "[rank 1] rank 1 is done" in run.output
    told = "[gang] Set for the ranks, since you set none: HOROVOD_CONTROLLER=gloo, HOROVOD_CPU_OPERATIONS=gloo, "
    assert run.output.count(f"{told}HOROVOD_GLOO_IFACE=lo, NCCL_SOCKET_IFNAME=lo") == 2, "once on each node"


@pytest.mark.slow
def test_a_rank_that_fails_is_told_with_a_stand_in(flow_run: FlowRunner, tmp_path: Path) -> None:
    run = flow_run(
        STAND_IN_FLOW,
        *("--out", str(tmp_path), "--fails", "2"),
        env={"PYTHONPATH": path_with(stand_in(tmp_path))},
        files={"rank.py": STAND_IN_RANK},
    )
    output = run.fails(RUN_S)
    assert "ValueError: loss is nan" in output
    assert re.search(r"The first failure was on node 1 \(.*\): rank 2 (exited with code 1|raised)", output)
    assert run.left(5) == []

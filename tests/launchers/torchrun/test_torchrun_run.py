"""``current.torch.run`` in real gangs: what it returns, where the ranks meet, and what it refuses to start."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.flows import FlowRunner
from support.remote import remote_gang

from metaflow_extensions.gang.core.guard.host.ports import lease_port

LIMIT_S = 120.0

FLOW = """
import dataclasses, json, os
from metaflow import FlowSpec, Parameter, current, step, torchrun

@dataclasses.dataclass
class Seen:
    rank: int
    world: str
    port: str

def look(shift=0):
    return Seen(int(os.environ["RANK"]) + shift, os.environ["WORLD_SIZE"], os.environ["MASTER_PORT"])

class Runs(FlowSpec):
    options = Parameter("options", default="{}")
    keywords = Parameter("keywords", default="{}")

    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @torchrun(ATTRIBUTES)
    @step
    def work(self):
        run, me = current.torch.run, current.gang.node_index
        self.before = current.torch.torchrun_args["master_port"]  # programs with a launcher of their own read it first
        options, keywords = json.loads(self.options), json.loads(self.keywords)
        # Two ranks on node 0, one on node 1.
        options["nproc_per_node"] = 2 - me
        if keywords.get("entrypoint"):
            self.returned = run(options, **keywords)
        else:
            seen = run(options, entrypoint=look, entrypoint_args={"shift": 10})
            # Another in the same step, with positional arguments as in the older package.
            again = run(options, look, None)
            self.returned = [dataclasses.astuple(one) for one in seen + again]
        self.args = current.torch.torchrun_args
        self.next(self.join)

    @step
    def join(self, inputs):
        self.returned = [one.returned for one in inputs]
        self.before = [one.before for one in inputs]
        self.args = inputs[0].args
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Runs()
"""


def flow(attributes: str = "") -> str:
    return FLOW.replace("ATTRIBUTES", attributes)


@pytest.mark.parametrize("options", [{}, {"max-restarts": 0}])
def test_functions_return_all_ranks_on_control_and_its_own_on_a_node(
    flow_run: FlowRunner, options: dict[str, Any]
) -> None:
    run = flow_run(flow(), "--options", json.dumps(options)).ok(LIMIT_S)
    control, worker = run.artifact("join", "returned")
    assert [one[:2] for one in control] == [(rank, "3") for rank in (10, 11, 12, 0, 1, 2)]
    assert [one[:2] for one in worker] == [(12, "3"), (2, "3")]
    assert len({one[2] for one in control + worker}) == 2, "each run has a port of its own, the same on all nodes"
    assert run.artifact("join", "before") == [int(control[0][2])] * 2, "the first run's port is known before it"
    args = run.artifact("join", "args")
    assert {name: args[name] for name in ("nnodes", "node_rank", "nproc_per_node", "master_addr")} == {
        "nnodes": 2,
        "node_rank": 0,
        "nproc_per_node": 2,
        "master_addr": "127.0.0.1",
    }


SQUATTED = """
import os, socket, subprocess, sys, time
from torch.distributed import TCPStore

rank, port = int(os.environ["RANK"]), int(os.environ["MASTER_PORT"])
with open(f"ports-{rank}", "a") as file:
    file.write(f"{port}\\n")
if rank == 0 and not os.path.exists("squatted"):
    # A foreign program takes the port between its choice and its use.
    open("squatted", "w").close()
    foreign = socket.create_server(("", port))
store = TCPStore(os.environ["MASTER_ADDR"], port, 3, is_master=rank == 0)
store.set(str(rank), "here")
store.wait([str(other) for other in range(3)])
store.set(f"done{rank}", "")
if rank == 0:
    store.wait([f"done{other}" for other in range(3)])
"""


@pytest.mark.slow
def test_a_port_that_a_foreign_program_took_is_got_round(flow_run: FlowRunner) -> None:
    run = flow_run(flow(), "--keywords", json.dumps({"entrypoint": "meet.py"}), files={"meet.py": SQUATTED}).ok(LIMIT_S)
    tried = [(run.folder / f"ports-{rank}").read_text().split() for rank in range(3)]
    assert len(set(tried[0])) == 2, "rank 0 was started on two ports"
    assert all(ports[-1] == tried[0][-1] for ports in tried), "all met on the second"


MEETS = "import os; open('port-' + os.environ['RANK'], 'w').write(os.environ['MASTER_PORT'])"


@pytest.mark.slow
def test_a_port_of_the_users_choice_is_used_or_refused(flow_run: FlowRunner) -> None:
    keywords = json.dumps({"entrypoint": "meets.py"})
    lease = lease_port("127.0.0.1")
    lease.release()
    port = lease.port
    run = flow_run(flow(f"master_port='{port}'"), "--keywords", keywords, files={"meets.py": MEETS}).ok(LIMIT_S)
    assert [(run.folder / f"port-{rank}").read_text() for rank in range(3)] == [str(port)] * 3
    assert run.artifact("join", "before") == [port] * 2
    with socket.create_server(("127.0.0.1", port)):
        output = flow_run(flow(f"master_port={port}"), "--keywords", keywords, files={"meets.py": MEETS}).fails(LIMIT_S)
    assert f"Port {port} is in use on this machine" in output


@pytest.mark.parametrize(
    ("keywords", "options", "says"),
    [
        ({"entrypoint": "trian.py"}, {}, "Did you mean train.py?"),
        ({"entrypoint": "train.py"}, {"nnodes": "1:4"}, "a gang has a fixed number of nodes, here 2"),
        ({"entrypoint": "train.py"}, {"master_addr": "192.0.2.77"}, "Leave master_addr out."),
        ({"entrypoint": "train.py", "nproc_per_node": 2}, {}, "nproc_per_node is given twice"),
        ({"entrypoint": "train.py", "push_results_dir_to_cloud": True}, {}, "needs local_output_dir"),
        ({"entrypoint": "train.py", "launcher": "x"}, {}, "current.torch.run() has no argument launcher."),
    ],
)
def test_mistakes_in_a_call_start_nothing(
    flow_run: FlowRunner, keywords: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    files = {"train.py": "open('started', 'w')"}
    run = flow_run(flow(), "--keywords", json.dumps(keywords), "--options", json.dumps(options), files=files)
    assert says in run.fails(LIMIT_S)
    assert not (run.folder / "started").exists()


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ("nproc_per_node=0", "nproc_per_node is the number of processes on each node, 1 or more"),
        ("launcher='mpirun'", "@torchrun(launcher='mpirun'): it is \"direct\""),
        ("master_port='http'", "@torchrun(master_port=...) is a port from 1 to 65535"),
        ("all_nodes_started_timeout=-1", "all_nodes_started_timeout"),
    ],
)
def test_mistakes_in_the_decorator_are_told_before_anything_is_scheduled(
    flow_run: FlowRunner, attributes: str, says: str
) -> None:
    output = flow_run(flow(attributes)).fails(LIMIT_S)
    assert says in output
    assert "Task is starting" not in output and "Traceback" not in output


def test_results_of_every_node_are_pushed(flow_run: FlowRunner) -> None:
    keywords = {
        "entrypoint": "saves.py",
        "push_results_dir_to_cloud": True,
        "local_output_dir": "out",
        "cloud_output_dir": "models/best",
    }
    script = "import os\nos.makedirs('out/deep', exist_ok=True)\nopen('out/deep/model.bin', 'wb').write(b'x' * 1000)\n"
    run = flow_run(flow(), "--keywords", json.dumps(keywords), files={"saves.py": script}).ok(LIMIT_S)
    control, worker = run.artifact("join", "returned")
    assert control == worker and control.endswith("/models/best")
    assert [(Path(control) / str(node) / "deep" / "model.bin").stat().st_size for node in range(2)] == [1000, 1000]


C10D = """
import os
from metaflow import FlowSpec, current, step, torchrun

def place():
    import torch.distributed as dist
    dist.init_process_group("gloo")
    dist.barrier()
    dist.destroy_process_group()
    return int(os.environ["RANK"]), int(os.environ["MF_PARALLEL_NODE_INDEX"])

class Work(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @torchrun
    @step
    def work(self):
        places = current.torch.run({"rdzv_backend": "c10d", "max_restarts": 1}, place, nproc_per_node=1)
        print(f"places {places};", flush=True)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Work()
"""


@pytest.mark.slow
def test_c10d_meets_on_hosts_whose_names_have_no_address_and_rank_0_is_on_node_0(tmp_path: Path) -> None:
    with remote_gang(tmp_path, C10D, 3) as gang:
        for node, host in enumerate(gang.hosts[index] for index in range(3)):
            host.run(["hostname", f"nowhere-{9 - node}.invalid"])  # by name the order would be the other way round
        outputs = [task.ok(LIMIT_S) for task in gang.start_all(GLOO_SOCKET_IFNAME="eth0")]
    assert "places [(0, 0), (1, 1), (2, 2)];" in outputs[0]

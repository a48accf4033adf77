"""@metaflow_ray on hosts of their own, with the real Ray: a cluster over a network, and what is lost of it.

Deadlines here tell "stopped" from "hangs"; how long an end really took is printed, and shown by ``pytest -rP``.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.frameworks.ray import START_S
from support.hosts import Host
from support.remote import GONE_S, RemoteGang, RemoteTask, all_fail, remote_gang
from support.requirements import require_packages, require_tool

LOST_S = 15.0
"""For a lost host, or a cut link, to be noticed and told."""

END_S = 25.0
"""For a failure that is seen at once: what it is meant to take is some seconds, on a machine that is not busy."""

CLOSED_S = 60.0
"""For a node to start, to import Ray, and to find for 15 s that the head's port lets nothing through."""

TMPDIR = "/run/tmp"
"""Of the tasks: each host has a /run of its own, and its name leaves room for those of Ray's sockets."""

PORT = 6399
"""The head's; each host has all ports to itself."""

BIG = pytest.mark.big

FLOW = f"""
import json, os
from metaflow import FlowSpec, current, metaflow_ray, resources, step

import helpers

class Remote(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @resources(cpu=2, memory=500)
    @metaflow_ray(main_port={PORT}, tolerate_lost_workers=os.environ.get("TOLERATE") == "1")
    @step
    def work(self):
        first = [node.alive for node in current.ray.nodes]
        import ray
        ray.init(logging_level="error")
        if os.environ["HOW"] == "meet":
            print("told", json.dumps({{"first": first, **helpers.meet(len(first))}}), flush=True)
        else:
            getattr(helpers, os.environ["HOW"])()
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

HELPERS = """
import collections, os, time

def on(index):
    return {"num_cpus": 0, "resources": {f"node:{index}": 0.1}}

def meet(count):
    import ray
    from metaflow import current

    # As many as there are processors, each with one, and none ends before all run.
    @ray.remote(num_cpus=1)
    def where(number):
        open(f"here-{number}", "w").close()
        while not all(os.path.exists(f"here-{other}") for other in range(2 * count)):
            time.sleep(0.05)
        return ray.get_runtime_context().get_node_id(), os.uname().nodename

    @ray.remote
    def see(path, earlier):
        os.makedirs(path, exist_ok=True)
        host = os.uname().nodename
        with open(os.path.join(path, host), "w") as file:
            file.write(f"{earlier} passed by")
        return host, os.environ["HERE"], ray.get_runtime_context().get_node_id(), os.getcwd()

    @ray.remote
    def large():
        return os.uname().nodename.encode() * 1_000_000  # too large for a message: it goes through the stores

    @ray.remote
    def length(data):
        return len(data)

    counted = collections.Counter(ray.get([where.remote(number) for number in range(2 * count)]))
    path, seen, lengths = current.ray_storage_path, [], []
    for index in range(count):
        before = seen[-1][0] if seen else "nobody"
        seen.append(ray.get(see.options(**on(index)).remote(path, before)))
        data = large.options(**on((index + 1) % count)).remote()
        lengths.append(ray.get(length.options(**on(index)).remote(data)))
    return {
        "alive": sum(node["Alive"] for node in ray.nodes()),
        "nodes": [[node.index, node.node_id, node.address] for node in current.ray.nodes],
        "counted": [[*who, number] for who, number in counted.items()],
        "seen": seen,
        "lengths": lengths,
        "path": path,
        "resources": ray.cluster_resources(),
    }

def wait():
    import ray

    @ray.remote(max_retries=0)
    def endless(index):
        print(f"endless {index} runs;", flush=True)
        time.sleep(1000)

    @ray.remote
    def ready():
        return 1

    waiting = [endless.options(**on(index)).remote(index) for index in range(3)]
    ray.get([ready.options(**on(index)).remote() for index in range(3)])
    print("ready;", flush=True)
    ray.get(waiting)

def again():
    import ray

    # Where there is such a host; its tasks go elsewhere once there is none.
    @ray.remote(max_retries=3, num_cpus=0)
    def work(path):
        with open(path, "a") as file:
            print(os.uname().nodename, file=file)
        while not os.path.exists("finish"):
            time.sleep(0.05)
        return os.uname().nodename

    node_id = next(node["NodeID"] for node in ray.nodes() if node["NodeName"] == "node2")
    where = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=True)
    running = work.options(scheduling_strategy=where).remote(os.path.abspath("ran"))
    while not os.path.exists("ran"):
        time.sleep(0.05)
    print("ready;", flush=True)
    print(f"the task ended on {ray.get(running)};", flush=True)

def watch():
    import ray

    print("ready;", flush=True)
    started = time.monotonic()
    while all(node["Alive"] for node in ray.nodes()):
        time.sleep(0.05)
    dead = [node["NodeName"] for node in ray.nodes() if not node["Alive"]]
    print(f"Ray has {dead} dead after {time.monotonic() - started:.1f} s;", flush=True)
    while not os.path.exists("finish"):
        time.sleep(0.05)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the nodes work, with the module that the flow and Ray's tasks import."""
    require_packages("ray")
    (tmp_path / "helpers.py").write_text(HELPERS)
    yield tmp_path


@contextmanager
def ray_gang(folder: Path, num_nodes: int) -> Iterator[RemoteGang]:
    """A gang on hosts; of its tasks, of Ray's folders and its shared memory nothing may be left on those that live."""
    with remote_gang(folder, FLOW, num_nodes) as gang:
        live = [gang.hosts[index] for index in range(num_nodes)]
        for host in live:
            host.run(["mkdir", "-p", TMPDIR])
        yield gang
        gang.wait_until_gone()
        deadline = time.monotonic() + GONE_S
        while (left := [f"{path} on {host.name}" for host in live for path in remains(host)]) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.05)
        assert not left, f"left on hosts that live: {'; '.join(left)}"


def remains(host: Host) -> list[str]:
    """Files and folders that a host has more than before; none where it was killed."""
    if not os.path.exists(f"/proc/{host.pid}/ns/mnt"):
        return []
    script = f"find /dev/shm {TMPDIR} -mindepth 1"
    return host.run(["sh", "-c", script]).stdout.splitlines()


def started(gang: RemoteGang, how: str, **env: str) -> list[RemoteTask]:
    """Every node's task, each with a variable of its own."""
    return [gang.start(node, HOW=how, HERE=f"node {node}", TMPDIR=TMPDIR, **env) for node in range(gang.num_nodes)]


def ready(gang: RemoteGang, how: str, **env: str) -> list[RemoteTask]:
    """Every node's task, once the body has tasks of Ray's that run."""
    tasks = started(gang, how, **env)
    tasks[0].wait_for("ready;", START_S)
    return tasks


def kill(host: Host, program: str) -> None:
    """SIGKILL to the one process of a program on a host."""
    (process,) = (p for p in host.processes() if p.command and os.path.basename(p.command[0]) == program)
    os.kill(process.pid, 9)


@pytest.mark.slow
def test_four_hosts_are_one_cluster(folder: Path) -> None:
    with ray_gang(folder, 4) as gang:
        gang.hosts[3].run(["mount", "-o", "remount,size=64m", "/dev/shm"])
        since = time.monotonic()
        tasks = started(gang, "meet")
        said = [task.ok(START_S) for task in tasks]
        print(f"four hosts: the tasks ended after {time.monotonic() - since:.1f} s")
        addresses = [gang.hosts[index].address for index in range(4)]
    took = re.search(r"\[gang\] .*4 of 4 nodes are alive in the cluster at (\S+) after ([\d.]+) s", said[0])
    assert took and took[1] == f"{addresses[0]}:{PORT}", said[0]
    print(f"four hosts: Ray was up after {took[2]} s")
    line = re.search(r"^told (.*)$", said[0], re.MULTILINE)
    assert line, said[0]
    check(json.loads(line[1]), addresses, folder)

    small = re.search(r"\[gang\] Node 3: /dev/shm has 64 MiB free, .* should have 150 MiB: it gets Ray's temp", said[3])
    assert small, said[3]
    assert all("/dev/shm has" not in output for output in said[:3])


def check(told: dict[str, Any], addresses: list[str], folder: Path) -> None:
    """What the body has found out."""
    assert told["first"] == [True] * 4 and told["alive"] == 4, "the body's first line saw all nodes"
    ids = [node_id for _, node_id, _ in told["nodes"]]
    assert [[index, address] for index, _, address in told["nodes"]] == [[i, a] for i, a in enumerate(addresses)]
    assert sorted(told["counted"]) == sorted([ids[index], f"gang{index}", 2] for index in range(4))
    assert told["seen"] == [[f"gang{i}", f"node {i}", ids[i], str(folder)] for i in range(4)]
    assert told["lengths"] == [5_000_000] * 4
    amounts = told["resources"]
    assert amounts["CPU"] == 8 and [amounts[f"node:{index}"] for index in range(4)] == [1, 1, 1, 1]
    assert amounts["object_store_memory"] == 4 * 150 * 1024**2
    written = {path.name: path.read_text() for path in Path(told["path"]).iterdir()}
    assert written == {f"gang{i}": f"{f'gang{i - 1}' if i else 'nobody'} passed by" for i in range(4)}
    assert "/mf.ray_decorator/Remote/7/work/0" in told["path"]


@BIG
def test_a_cut_link_is_told_on_both_sides(folder: Path) -> None:
    with ray_gang(folder, 3) as gang:
        tasks = ready(gang, "wait")
        for index in range(3):
            folders = gang.hosts[index].run(["sh", "-c", f"stat -c '%n %a' {TMPDIR}/gang-ray-*"]).stdout
            assert re.fullmatch(rf"{TMPDIR}/gang-ray-[0-9a-f]+-{index} 700\n", folders), "its user's alone"
        since = time.monotonic()
        gang.hosts.cut(2)
        said = all_fail(tasks, since, LOST_S, "a cut link")
    cut = "or the network between them is cut"
    for output in said[:2]:
        assert re.search(rf"The first failure was on node 2 \(gang2\): .*{cut}", output), output
    assert re.search(rf"The first failure was on node 0: .*{cut}", said[2]), said[2]


@BIG
@pytest.mark.parametrize("node", [1, 0])
def test_a_killed_task_ends_the_cluster(folder: Path, node: int) -> None:
    with ray_gang(folder, 3) as gang:
        tasks = ready(gang, "wait")
        since = time.monotonic()
        tasks[node].kill()
        said = all_fail([task for task in tasks if task is not tasks[node]], since, END_S, f"the killed task {node}")
        assert tasks[node].wait(END_S) != 0
    for output in said:
        assert re.search(rf"The first failure was on node {node} \(gang{node}\): the node's task", output), output


@BIG
@pytest.mark.parametrize(("program", "node"), [("raylet", 1), ("raylet", 0), ("gcs_server", 0)])
def test_a_killed_program_of_ray_is_named(folder: Path, program: str, node: int) -> None:
    with ray_gang(folder, 3) as gang:
        tasks = ready(gang, "wait")
        since = time.monotonic()
        kill(gang.hosts[node], program)
        said = all_fail(tasks, since, END_S, f"SIGKILL of node {node}'s {program}")
    for index, output in enumerate(said):
        where = "" if index == node else rf"The first failure was on node {node} \(gang{node}\): "
        assert re.search(rf"{where}{program} was killed by SIGKILL", output), output


@BIG
@pytest.mark.parametrize("node", [1, 0])
def test_a_killed_host_is_named_by_the_others(folder: Path, node: int) -> None:
    with ray_gang(folder, 3) as gang:
        tasks = ready(gang, "wait")
        since = time.monotonic()
        gang.kill_host(node)
        said = all_fail([task for task in tasks if task is not tasks[node]], since, END_S, f"the killed host {node}")
    for output in said:
        assert re.search(rf"The first failure was on node {node}\b.*(was lost|answers neither|has died)", output), (
            output
        )


@BIG
def test_a_host_that_cannot_reach_the_heads_port_says_so(folder: Path) -> None:
    ip = require_tool("ip", "iproute2")
    with ray_gang(folder, 3) as gang:
        # As a firewall does it that lets the gang's own ports through: connecting to the head's gets no answer.
        closed = ["ipproto", "tcp", "sport", str(PORT), "blackhole"]
        gang.hosts[0].run([ip, "rule", "add", "to", gang.hosts[1].address, *closed])
        since = time.monotonic()
        tasks = started(gang, "wait")
        said = all_fail(tasks, since, CLOSED_S, "a closed port")
        where = f"{gang.hosts[0].address} port {PORT}, where Ray's head is, cannot be reached from here"
    for index, output in enumerate(said):
        assert where in output and "firewall or network policy" in output, output
        assert index == 1 or "The first failure was on node 1 (gang1)" in output, output
        assert "ready;" not in output
    assert f"Node 1 did not join the Ray cluster at {where.split()[0]}:{PORT}" in said[1], said[1]


@BIG
def test_a_host_that_is_cut_off_while_the_cluster_forms(folder: Path) -> None:
    with ray_gang(folder, 3) as gang:
        tasks = started(gang, "wait")
        deadline = time.monotonic() + START_S
        while not [p for p in gang.hosts[1].processes() if "--node-name" in p.command]:
            assert time.monotonic() < deadline, tasks[1].dump()
            time.sleep(0.02)
        since = time.monotonic()
        gang.hosts.cut(1)
        said = all_fail(tasks, since, LOST_S, "a link cut while the cluster forms")
    cut = "or the network between them is cut"
    for index, output in enumerate(said):
        name = "node 0" if index == 1 else r"node 1 \(gang1\)"
        assert re.search(rf"The first failure was on {name}: .*{cut}", output), output


def lost(node: int) -> re.Pattern[str]:
    """What control says of a node that it goes on without."""
    return re.compile(rf"\[gang\] node {node} \(gang{node}\) was lost: .*\. The step goes on without it\.")


@BIG
def test_a_killed_host_is_done_without_where_that_is_tolerated(folder: Path) -> None:
    with ray_gang(folder, 3) as gang:
        tasks = ready(gang, "again", TOLERATE="1")
        assert (folder / "ran").read_text() == "gang2\n"
        since = time.monotonic()
        gang.kill_host(2)
        tasks[0].wait_for(lost(2), LOST_S)
        print(f"a killed host, tolerated: told after {time.monotonic() - since:.1f} s")
        deadline = since + START_S
        while (folder / "ran").read_text() == "gang2\n":
            assert time.monotonic() < deadline, tasks[0].dump()
            time.sleep(0.05)
        print(f"a killed host, tolerated: its task ran again after {time.monotonic() - since:.1f} s")
        (folder / "finish").touch()
        control, other = [task.ok(END_S) for task in tasks[:2]]
    assert re.search(r"the task ended on gang[01];", control), control
    assert "first failure" not in control + other and len(re.findall("was lost: ", control)) == 1, control


@BIG
def test_ray_knows_of_a_cut_host_in_time_where_that_is_tolerated(folder: Path) -> None:
    with ray_gang(folder, 3) as gang:
        tasks = ready(gang, "watch", TOLERATE="1")
        since = time.monotonic()
        gang.hosts.cut(1)
        dead = tasks[0].wait_for(re.compile(r"Ray has (.*) dead after"), LOST_S)[1]
        print(f"a cut link, tolerated: Ray knew after {time.monotonic() - since:.1f} s")
        assert dead == "['node1']"
        tasks[0].wait_for(lost(1), max(0.0, since + LOST_S - time.monotonic()))
        (folder / "finish").touch()
        for node in (0, 2):
            assert "first failure" not in tasks[node].ok(END_S)
        assert "or the network between them is cut" in tasks[1].fails(END_S)

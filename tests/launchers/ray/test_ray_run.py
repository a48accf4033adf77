"""@metaflow_ray on one machine, with the real Ray: who is in the cluster, next to whom it lives, and how it ends.

Deadlines here tell "stopped" from "hangs"; how long an end really took is printed, and shown by ``pytest -rP``.
"""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.faults import kill_process
from support.flows import FlowRun, FlowRunner
from support.frameworks.ray import END_S, START_S, folders, no_ray_leaks, other_ray, ray_processes
from support.requirements import require_packages

pytestmark = pytest.mark.slow

RICH = """
import collections, os, sys, time
from metaflow import FlowSpec, current, metaflow_ray, resources, step

import helpers

class Rich(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=3)

    @resources(cpu=2, memory=1000)
    @metaflow_ray(all_nodes_started_timeout=90)
    @step
    def work(self):
        if "ray" not in sys.modules:
            assert os.environ["LATE_IMPORT"]
        first = [node.alive for node in current.ray.nodes]
        import ray
        told = ray.init()
        self.alive = first
        self.address = current.ray.address
        self.joined = told.address_info["gcs_address"]
        self.resources = {name: amount for name, amount in ray.cluster_resources().items()}
        self.nodes = {node.index: node.node_id for node in current.ray.nodes}
        self.addresses = [node.address for node in current.ray.nodes]

        @ray.remote
        def where():
            time.sleep(0.05)
            return ray.get_runtime_context().get_node_id()

        pinned = [where.options(num_cpus=0, resources={f"node:{index}": 0.1}).remote() for index in range(3)]
        self.pinned = ray.get(pinned)
        spread = ray.get([where.options(scheduling_strategy="SPREAD").remote() for _ in range(60)])
        self.spread = dict(collections.Counter(spread))

        self.storage, self.earlier = current.ray_storage_path, current.ray.earlier_storage_paths
        assert current.ray.storage_path == self.storage and current.ray.dashboard_url is None
        os.makedirs(self.storage, exist_ok=True)
        with open(os.path.join(self.storage, "checkpoint"), "w") as file:
            file.write("kept")

        self.returned = current.ray.run(helpers.count, {"most": 4})
        assert current.ray.run("script.py", {"samples": 20}, env={"FLAVOUR": "sweet"}) is None
        try:
            current.ray.run("scrip.py")
        except Exception as error:
            self.missing = type(error).__name__, str(error)
        self.next(self.join)

    @step
    def join(self, inputs):
        inputs = list(inputs)
        self.joined_tasks = len(inputs)
        (self.filled,) = [node.index for node in inputs if hasattr(node, "nodes")]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Rich()
"""

HELPERS = """
def count(most):
    import ray
    ray.init(logging_level="error")

    @ray.remote(scheduling_strategy="SPREAD")
    def square(number):
        return number * number

    return sum(ray.get([square.remote(number) for number in range(most)]))

def fail(why):
    raise LookupError(why)
"""

SCRIPT = """
import os, sys
import ray

def main():
    ray.init(logging_level="error")
    alive = len([node for node in ray.nodes() if node["Alive"]])
    print("the script sees", alive, "nodes;", sys.argv[1:], os.environ.get("FLAVOUR"), flush=True)
    if "--fail" in sys.argv:
        raise ZeroDivisionError("deliberate in the script")

main()
"""

FILES = {"helpers.py": HELPERS, "script.py": SCRIPT}

PLAIN = """
from metaflow import FlowSpec, current, metaflow_ray, step

class Plain(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @metaflow_ray
    @step
    def work(self):
        import ray
        ray.init(logging_level="error")

        @ray.remote
        def where():
            return ray.get_runtime_context().get_node_id()

        self.where = ray.get([where.options(resources={f"node:{index}": 1}).remote() for index in range(2)])
        assert len(ray.nodes()) == 2, ray.nodes()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.where = [node.where for node in inputs if hasattr(node, "where")][0]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Plain()
"""


@pytest.fixture(autouse=True)
def ray_is_here_and_goes() -> Iterator[None]:
    """What all of these need, and what none of them leaves."""
    require_packages("ray")
    with no_ray_leaks():
        yield


def check_rich(run: FlowRun, other_address: str) -> None:
    """What one run of RICH has found out."""
    found = {artifact.id: artifact.data for artifact in run.node_tasks("work")[0]}
    assert found["alive"] == [True] * 3, "the body's first line saw all nodes"
    assert found["joined"] == found["address"] != other_address
    assert set(found["addresses"]) == {"127.0.0.2"}, "no other machine reaches it"
    amounts = found["resources"]
    assert amounts["CPU"] == 6 and [amounts[f"node:{index}"] for index in range(3)] == [1, 1, 1]
    assert amounts["object_store_memory"] == 3 * 300 * 1024**2 and amounts["memory"] == 3 * 700 * 1024**2
    nodes = found["nodes"]
    assert sorted(nodes) == [0, 1, 2] and found["pinned"] == [nodes[0], nodes[1], nodes[2]]
    assert found["spread"].keys() == set(nodes.values()) and len(set(nodes.values())) == 3, "tasks ran on every node"

    assert Path(found["storage"], "checkpoint").read_text() == "kept"
    assert f"/mf.ray_decorator/Rich/{run.run_id}/work/0" in found["storage"] and found["earlier"] == ()

    assert found["returned"] == 0 + 1 + 4 + 9
    assert "the script sees 3 nodes; ['--samples', '20'] sweet" in run.node_log("work", 0)
    kind, told = found["missing"]
    assert kind == "BadAttribute" and "Did you mean script.py" in told
    assert run.artifact("join", "joined_tasks") == 3 and run.artifact("join", "filled") == 0

    log = run.node_log("work", 0, "stderr")
    assert re.search(r"Ray \S+: 3 of 3 nodes are alive in the cluster at 127\.0\.0\.2:\d+ after [\d.]+ s\.", log)
    said = f"RAY_ADDRESS was {other_address}; in this step it is that of the step's own cluster."
    assert said in log, log


@pytest.mark.big
def test_runs_in_a_row_and_at_once_next_to_a_cluster_that_is_not_ours(flow_run: FlowRunner) -> None:
    before = folders()
    with other_ray() as other:
        env = {"RAY_ADDRESS": other.address}
        # Ray that is imported first reads its settings from the environment then.
        first = flow_run("import ray" + RICH, files=FILES, env=env).ok(START_S)
        check_rich(first, other.address)
        assert first.left(5) == [] and not folders() - before

        rich = flow_run(RICH, files=FILES, env={**env, "LATE_IMPORT": "1"})
        plain = flow_run(PLAIN, env=env)
        for run in (rich, plain):
            run.ok(2 * START_S)
        check_rich(rich, other.address)
        assert len(set(plain.artifact("join", "where"))) == 2

        for run in (rich, plain):
            assert run.left(5) == []
        assert not folders() - before
        other.works()


WAITING = """
import os, time
from metaflow import FlowSpec, Parameter, current, metaflow_ray, step

import helpers

class Waiting(FlowSpec):
    how = Parameter("how", default="get")

    @step
    def start(self):
        self.next(self.work, num_parallel=3)

    @metaflow_ray
    @step
    def work(self):
        import ray
        ray.init(logging_level="error")

        @ray.remote(max_retries=0)
        def endless():
            print("endless runs;", flush=True)
            time.sleep(1000)

        @ray.remote(resources={"node:1": 1})
        def ready():
            return 1

        waiting = endless.options(num_cpus=0, resources={"node:0": 1}).remote()
        ray.get(ready.remote())
        print("ready;", flush=True)
        if self.how == "raise":
            raise ValueError("deliberate on the head")
        elif self.how == "script":
            current.ray.run("script.py", ["--fail"])
        elif self.how == "function":
            current.ray.run(helpers.fail, ["on purpose"])
        ray.get(waiting)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Waiting()
"""


STACKS = "did not end within"
"""What the guard says before it shows where an interrupted body stands, and kills it."""


@contextmanager
def ends_in_time(run: FlowRun, what: str) -> Iterator[None]:
    """Strike inside, once the body waits in ``ray.get``; the run then fails before the deadline, and leaves nothing."""
    run.wait_for("ready;", START_S)
    started = time.monotonic()
    yield
    run.fails(END_S)
    print(f"{what}: the run ended after {time.monotonic() - started:.1f} s")
    assert run.left(END_S) == []


def told_on(run: FlowRun, cause: str, *nodes: int) -> None:
    """Each of ``nodes`` tells, in its own log, that ``cause`` was the first failure."""
    for node in nodes:
        log = run.node_log("work", node, "stderr")
        assert re.search(rf"The first failure was on {cause}", log), f"node {node}: {log}\n{run.dump()}"


@pytest.mark.parametrize(
    ("program", "node"),
    [("raylet", 1), *(pytest.param(name, 0, marks=pytest.mark.big) for name in ("gcs_server", "raylet"))],
)
def test_a_killed_program_of_ray_is_named_with_its_node(flow_run: FlowRunner, program: str, node: int) -> None:
    run = flow_run(WAITING, files=FILES)
    with ends_in_time(run, f"SIGKILL of node {node}'s {program}"):
        kill_process(ray_processes(run, program)[node])
    told_on(run, rf"node {node} \(.*\): {program} was killed by SIGKILL", *({0, 1, 2} - {node}))
    assert f"{program} was killed by SIGKILL" in run.node_log("work", node, "stderr")
    assert STACKS not in run.output, run.dump()


@pytest.mark.parametrize("node", [1, pytest.param(0, marks=pytest.mark.big)])
def test_a_killed_task_ends_ray_on_all_nodes(flow_run: FlowRunner, node: int) -> None:
    run = flow_run(WAITING, files=FILES)
    with ends_in_time(run, f"SIGKILL of node {node}'s task"):
        kill_process(run.tasks("work")[node])
    told_on(run, rf"node {node} \(.*\): the node's task (was killed by SIGKILL|died)", *({0, 1, 2} - {node}))
    assert STACKS not in run.output, run.dump()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("raise", ["the step's body raised ValueError: deliberate on the head"]),
        pytest.param("function", ["LookupError: on purpose", "helpers.py"], marks=pytest.mark.big),
        ("script", ["script.py", "ZeroDivisionError: deliberate in the script"]),
    ],
)
def test_what_the_body_and_its_script_raise_is_told_on_all_nodes(
    flow_run: FlowRunner, how: str, told: list[str]
) -> None:
    run = flow_run(WAITING, "--how", how, files=FILES)
    with ends_in_time(run, how):
        pass
    told_on(run, "node 0", 1, 2)
    for node in (1, 2):
        assert all(part in run.node_log("work", node, "stderr") for part in told), run.dump()
    assert told[-1].rpartition("raised ")[2] in run.node_log("work", 0, "stderr")
    assert STACKS not in run.output, run.dump()


@pytest.mark.big
def test_a_node_that_does_not_join_is_named_with_the_reason(flow_run: FlowRunner) -> None:
    broken = """
        import os
        if os.environ.get("MF_PARALLEL_NODE_INDEX") == "1":
            os.environ["RAY_AUTH_TOKEN"] = "f" * 64  # not the gang's: the head refuses it
        """
    run = flow_run(textwrap.dedent(broken) + WAITING, files=FILES)
    started = time.monotonic()
    run.fails(START_S)
    print(f"a node that is refused: the run ended after {time.monotonic() - started:.1f} s")
    assert "ready;" not in run.output
    told_on(run, r"node 1 \(.*\): Node 1 did not join the Ray cluster at 127\.0\.0\.2:\d+: ray start ", 0, 2)
    for node in (0, 1, 2):
        assert re.search("(?i)unauthenticated|invalid authentication|auth.*token", run.node_log("work", node, "stderr"))
    assert run.left(END_S) == []

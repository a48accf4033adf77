"""@jax with the real JAX, on one machine and on hosts of their own: who is told what, and how it ends.

Deadlines here tell "stopped" from "hangs"; how long an end really took is printed, and shown by ``pytest -rP``.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from support.faults import kill_process
from support.flows import FlowRun, FlowRunner
from support.frameworks.tensorflow import END_S, LOST_S, QUIET, SPLIT, STACKS, START_S, ready, told_on
from support.remote import RemoteGang, RemoteTask, all_fail, remote_gang
from support.requirements import require_packages

BIG = pytest.mark.big

LOOPS = """
import os, time
from split import digits

def summed():
    '''A sum over all processes.'''
    import jax
    return jax.pmap(lambda value: jax.lax.psum(value, "all"), axis_name="all")

def train(steps=300):
    '''Accuracy on the held-out digits, and the weights' sum: each process learns from its share of each batch.'''
    import jax, jax.numpy as jnp, numpy as np

    x, y, held_x, held_y = digits()
    index, count = jax.process_index(), jax.process_count()
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(64, 64)) / 8, rng.normal(size=(64, 10)) / 8
    weights = [jnp.asarray(value, "float32") for value in (first, np.zeros(64), second, np.zeros(10))]

    def logits(weights, x):
        return jnp.maximum(x @ weights[0] + weights[1], 0) @ weights[2] + weights[3]

    def loss(weights, x, y):
        return -jnp.mean(jax.nn.log_softmax(logits(weights, x))[jnp.arange(len(y)), y])

    def step(weights, x, y):
        gradients = jax.lax.pmean(jax.grad(loss)(weights, x, y), "all")
        return [weight - 0.5 * gradient for weight, gradient in zip(weights, gradients)]

    learn = jax.pmap(step, axis_name="all")
    weights = [weight[None] for weight in weights]
    for _ in range(steps):
        batch = rng.choice(len(x), 64 * count, replace=False)[index::count]
        weights = learn(weights, x[batch][None], y[batch][None])
    weights = [weight[0] for weight in weights]
    right = np.argmax(logits(weights, held_x), axis=1) == held_y
    return [float(right.mean()), float(sum(abs(weight).sum() for weight in weights))]

def totals(how):
    '''Sums without an end. Node 1 raises where that is ``how``, and where it is "idle" nobody sums after the third.'''
    import jax, jax.numpy as jnp

    total, index, done = summed(), jax.process_index(), 0
    while True:
        result = float(total(jnp.ones(1) * (index + 1))[0])
        done += 1
        if done == 3:
            print(f"node {index} has {result}, process {os.getpid()};", flush=True)
        if how == "idle" and done == 3:
            time.sleep(1000)
        time.sleep(0.05)
        if how == "raise" and index == 1 and done == 10:
            raise ValueError("deliberate on node 1")
"""

FLOW = """
import json, os, sys, time
if os.environ.get("AT_THE_TOP"):
    import jax
from metaflow import FlowSpec, current, step
from metaflow import jax as on_all

import loops

class Sums(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @on_all
    @step
    def work(self):
        assert ("jax" in sys.modules) == bool(os.environ.get("AT_THE_TOP"))
        how, place = os.environ["HOW"], current.jax
        self.place = [place.coordinator_address, place.process_id, place.num_processes]
        if how != "never":
            import jax, jax.numpy as jnp
            jax.distributed.initialize()
        if how == "twice":
            jax.distributed.initialize()
        if how == "learn":
            self.seen = [jax.process_index(), jax.process_count(), jax.device_count()]
            self.total = float(loops.summed()(jnp.ones(1) * (current.gang.node_index + 1))[0])
            self.learned = loops.train()
            print("told", json.dumps([self.place, self.seen, self.total, self.learned]), flush=True)
            # The first node, on which the coordinator lives, is the first to be done.
            time.sleep(2 * current.gang.node_index)
        elif how in ("raise", "wait", "idle"):
            loops.totals(how)
        elif how == "never":
            import jax
            self.seen = [jax.process_index(), jax.process_count()]
        self.next(self.join)

    @step
    def join(self, inputs):
        inputs = list(inputs)
        self.places = [node.place for node in inputs]
        self.found = [[node.seen, getattr(node, "total", 0), getattr(node, "learned", 0)] for node in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Sums()
"""

FILES = {"split.py": SPLIT, "loops.py": LOOPS}


@pytest.fixture(autouse=True)
def packages() -> None:
    """What all of these need."""
    require_packages("jax", "sklearn")


def flow(flow_run: FlowRunner, how: str, nodes: int, **env: str) -> FlowRun:
    return flow_run(FLOW, files=FILES, env={**QUIET, "HOW": how, "NODES": str(nodes), **env})


@pytest.mark.parametrize(("nodes", "at_the_top"), [pytest.param(2, "1", marks=BIG), pytest.param(3, "", marks=BIG)])
def test_local_nodes_learn_the_digits_and_end_one_after_the_other(
    flow_run: FlowRunner, nodes: int, at_the_top: str
) -> None:
    run = flow(flow_run, "learn", nodes, AT_THE_TOP=at_the_top).ok(START_S)
    places, found = run.artifact("join", "places"), run.artifact("join", "found")
    assert [place[1:] for place in places] == [[index, nodes] for index in range(nodes)]
    assert len({place[0] for place in places}) == 1
    for index, (seen, total, (accuracy, weights)) in enumerate(found):
        assert seen == [index, nodes, nodes] and total == sum(range(1, nodes + 1))
        assert accuracy >= 0.95 and weights == pytest.approx(found[0][2][1])
    print(f"accuracy on {nodes} nodes {found[0][2][0]:.4f}")
    assert run.left(5) == []


@BIG
def test_jax_that_is_never_initialized_is_alone(flow_run: FlowRunner) -> None:
    run = flow(flow_run, "never", 2).ok(START_S)
    assert [seen for seen, *_ in run.artifact("join", "found")] == [[0, 1]] * 2


@BIG
def test_jax_that_is_initialized_twice_says_so(flow_run: FlowRunner) -> None:
    run = flow(flow_run, "twice", 2)
    said = run.fails(START_S)
    assert "RuntimeError: distributed.initialize should only be called once" in said, run.dump()
    assert STACKS not in said and run.left(5) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "node"),
    [("raise", 1), *(pytest.param(how, node, marks=BIG) for how, node in (("wait", 1), ("wait", 0), ("idle", 0)))],
)
def test_a_node_that_fails_ends_the_others(flow_run: FlowRunner, how: str, node: int) -> None:
    run = flow(flow_run, how, 3)
    pids = [ready(run, index, 6.0) for index in range(3)]
    since = time.monotonic()
    if how != "raise":
        kill_process(pids[node])
    run.fails(END_S)
    print(f"node {node}, {how}: the run ended after {time.monotonic() - since:.1f} s")
    assert run.left(5) == []
    cause = "the step's body raised ValueError" if how == "raise" else "the node's task (was killed by SIGKILL|died)"
    told_on(run, rf"node {node} \(.*\): {cause}", *({0, 1, 2} - {node}))
    if how == "raise":
        assert "ValueError: deliberate on node 1" in run.node_log("work", 1, "stderr")
    assert STACKS not in run.output, run.dump()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the nodes of a gang on hosts work, with the modules that the flow imports."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def all_ready(gang: RemoteGang, how: str) -> list[RemoteTask]:
    """Every node's task, once all have summed up."""
    tasks = gang.start_all(HOW=how, **QUIET)
    for node, task in enumerate(tasks):
        ready(task, node, 6.0)
    return tasks


@pytest.mark.slow
def test_three_hosts_sum_and_learn(folder: Path) -> None:
    with remote_gang(folder, FLOW, 3) as gang:
        outputs = [task.ok(START_S) for task in gang.start_all(HOW="learn", **QUIET)]
        address = gang.hosts[0].address
    told = [json.loads(re.findall(r"^told (.*)$", output, re.MULTILINE)[0]) for output in outputs]
    for index, (place, seen, total, (accuracy, weights)) in enumerate(told):
        assert place[0].startswith(f"{address}:") and place[1:] == [index, 3] and seen == [index, 3, 3]
        assert total == 1 + 2 + 3 and accuracy >= 0.95 and weights == pytest.approx(told[0][3][1])
    print(f"accuracy on 3 hosts {told[0][3][0]:.4f}")


@BIG
def test_what_a_node_raises_is_told_on_all_hosts(folder: Path) -> None:
    with remote_gang(folder, FLOW, 3) as gang:
        tasks = all_ready(gang, "raise")
        said = all_fail(tasks, time.monotonic(), END_S, "a node that raises", may_crash=True)
    for index, output in enumerate(said):
        assert "ValueError: deliberate on node 1" in output and STACKS not in output, output
        assert index == 1 or "The first failure was on node 1 (gang1): " in output, output


@pytest.mark.parametrize(
    ("how", "node"), [pytest.param(how, node, marks=BIG) for how, node in (("wait", 0), ("wait", 1), ("idle", 0))]
)
def test_a_killed_host_is_named_by_the_others(folder: Path, how: str, node: int) -> None:
    with remote_gang(folder, FLOW, 3) as gang:
        tasks = all_ready(gang, how)
        since = time.monotonic()
        gang.kill_host(node)
        live = [task for task in tasks if task is not tasks[node]]
        said = all_fail(live, since, LOST_S, f"the killed host {node}, {how}", may_crash=True)
    for output in said:
        assert re.search(rf"The first failure was on node {node}\b.*(was lost|answers neither|has died)", output), (
            output
        )


@pytest.mark.parametrize(
    ("how", "node"), [pytest.param(how, node, marks=BIG) for how, node in (("wait", 1), ("wait", 0), ("idle", 0))]
)
def test_a_host_whose_link_is_cut_is_named_and_ends_itself(folder: Path, how: str, node: int) -> None:
    with remote_gang(folder, FLOW, 3) as gang:
        tasks = all_ready(gang, how)
        since = time.monotonic()
        gang.hosts.cut(node)
        said = all_fail(tasks, since, LOST_S, f"a cut link of host {node}, {how}", may_crash=True)
    for index, output in enumerate(said):
        cause = rf"node {node}\b" if index != node else r"node \d"
        assert re.search(rf"The first failure was on {cause}.*or the network between them is cut", output), output

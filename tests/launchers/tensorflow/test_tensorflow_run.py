"""@tensorflow on one machine, with the real TensorFlow: what it is told, what it learns, and how it ends.

Deadlines here tell "stopped" from "hangs"; how long an end really took is printed, and shown by ``pytest -rP``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import metaflow
import pytest
from support.faults import kill_process
from support.flows import FlowRun, FlowRunner, flow_environment
from support.frameworks.tensorflow import END_S, FILES, QUIET, STACKS, START_S, ready, told_on
from support.requirements import require_packages
from support.trees import Tree

BIG = pytest.mark.big

RICH = """
import json, os, sys, time
from pathlib import Path
from metaflow import FlowSpec, current, step, tensorflow

import loops

class Rich(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @tensorflow(all_nodes_started_timeout=90)
    @step
    def work(self):
        assert "tensorflow" not in sys.modules
        self.config, self.told = current.tensorflow.config, json.loads(os.environ["TF_CONFIG"])
        self.chief, self.place = current.tensorflow.is_chief, current.tensorflow.worker_index
        path = current.tensorflow.save_path("models/digits.keras")
        self.learned = loops.train(path)
        self.saved = path
        self.model = Path(path).read_bytes()
        policy = lambda options: options.experimental_distribute.auto_shard_policy.name
        data_options = current.tensorflow.data_options
        self.policies = [policy(data_options()), policy(data_options(already_sharded=True))]
        # In a process of its own, while this one still has its server.
        self.totals = current.tensorflow.run(loops.totals, {"rounds": 3})
        self.next(self.join)

    @step
    def join(self, inputs):
        nodes = sorted(inputs, key=lambda node: node.place)
        self.nodes = [[n.config, n.told, n.chief, n.place, n.learned, n.saved, n.policies, n.totals] for n in nodes]
        (chief,) = [node for node in nodes if node.chief]
        Path("joined.keras").write_bytes(chief.model)
        self.scored = loops.score("joined.keras")
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Rich()
"""


@pytest.fixture(autouse=True)
def packages() -> None:
    """What all of these need."""
    require_packages("tensorflow", "sklearn")


@pytest.mark.slow
def test_two_nodes_learn_the_digits_and_the_join_scores_the_chiefs_model(flow_run: FlowRunner) -> None:
    run = flow_run(RICH, files=FILES, env=QUIET).ok(2 * START_S)
    nodes = run.artifact("join", "nodes")
    configs, told, chiefs, indices, learned, saved, policies, totals = zip(*nodes, strict=True)
    assert configs == told and len(set(configs[0]["cluster"]["worker"])) == 2
    assert [config["task"] for config in configs] == [{"type": "worker", "index": index} for index in range(2)]
    assert configs[0]["cluster"] == configs[1]["cluster"]
    assert chiefs == (True, False) and indices == (0, 1)
    assert learned[0] == pytest.approx(learned[1]), "both have the same weights"
    accuracy, replicas, _ = learned[0]
    print(f"accuracy on 2 nodes {accuracy:.4f}")
    assert accuracy >= 0.95 and replicas == 2
    assert run.artifact("join", "scored") == pytest.approx(accuracy)
    assert saved[0] == "models/digits.keras" and "thrown-away-" in saved[1]
    assert [path.name for path in (run.folder / "models").iterdir()] == ["digits.keras"]
    assert policies == (["DATA", "OFF"],) * 2
    assert totals == ([3.0, 3.0], [3.0])
    assert run.left(5) == []


ONCE = """
import os
from metaflow import FlowSpec, current, step, tensorflow

import loops

class Once(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @tensorflow
    @step
    def work(self):
        self.total = loops.totals(rounds=1)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.totals = [node.total for node in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Once()
"""


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [1, pytest.param(10, marks=[BIG, pytest.mark.timeout(1800)])])
def test_runs_at_once_and_in_a_row_have_ports_of_their_own(flow_run: FlowRunner, pairs: int) -> None:
    for _ in range(pairs):
        started = time.monotonic()
        runs = [flow_run(ONCE, files=FILES, env=QUIET) for _ in range(2)]
        for run in runs:
            assert run.ok(START_S).artifact("join", "totals") == [3.0, 3.0]
            assert run.left(5) == []
        print(f"two runs at once took {time.monotonic() - started:.1f} s")


FAILING = """
import os
from metaflow import FlowSpec, Parameter, current, step, tensorflow

import loops

class Failing(FlowSpec):
    how = Parameter("how")
    where = Parameter("where")

    @step
    def start(self):
        self.next(self.work, num_parallel=3)

    @tensorflow
    @step
    def work(self):
        if self.where == "body":
            loops.totals(self.how)
        else:
            current.tensorflow.run(loops.totals, [self.how])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Failing()
"""


def all_ready(flow_run: FlowRunner, how: str, where: str) -> tuple[FlowRun, list[int]]:
    """A run of FAILING in which all nodes have summed up, and the processes that did."""
    run = flow_run(FAILING, "--how", how, "--where", where, files=FILES, env=QUIET)
    return run, [ready(run, node, 6.0) for node in range(3)]


@contextmanager
def ends_in_time(run: FlowRun, what: str) -> Iterator[None]:
    """Strike inside; the run then fails before the deadline, and leaves nothing."""
    started = time.monotonic()
    yield
    run.fails(END_S)
    print(f"{what}: the run ended after {time.monotonic() - started:.1f} s")
    assert run.left(5) == []


@BIG
@pytest.mark.parametrize("where", ["body", "run"])
def test_what_a_worker_raises_ends_the_others_in_their_collective(flow_run: FlowRunner, where: str) -> None:
    run, _ = all_ready(flow_run, "raise", where)
    with ends_in_time(run, f"a worker that raises, {where}"):
        pass
    who = "the step's body raised ValueError" if where == "body" else r"totals\(\) exited with code 1"
    told_on(run, rf"node 1 \(.*\): {who}", 0, 2)
    for node in range(3):
        assert "ValueError: deliberate on node 1" in run.node_log("work", node, "stderr")
    # In the body the others sit in a collective in C++, from which only the end of the process leads.
    assert (STACKS in run.output and "in totals" in run.output) == (where == "body"), run.dump()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "node"), [("run", 1), pytest.param("body", 1, marks=BIG), pytest.param("body", 0, marks=BIG)]
)
def test_a_killed_worker_is_named(flow_run: FlowRunner, where: str, node: int) -> None:
    run, pids = all_ready(flow_run, "wait", where)
    with ends_in_time(run, f"SIGKILL of node {node}, {where}"):
        kill_process(pids[node])
    how = r"the node's task (was killed by SIGKILL|died)" if where == "body" else r"totals\(\) was killed by SIGKILL"
    told_on(run, rf"node {node} \(.*\): {how}", *({0, 1, 2} - {node}))


GANGS = """
import json, os
from metaflow import FlowSpec, current, retry, step, tensorflow

import loops

class Gangs(FlowSpec):
    @step
    def start(self):
        self.names = ["first", "second"]
        self.next(self.fan, foreach="names")

    @step
    def fan(self):
        self.which = self.input
        self.next(self.work, num_parallel=2)

    @retry(times=1, minutes_between_retries=0)
    @tensorflow
    @step
    def work(self):
        attempt, index = current.retry_count, current.tensorflow.worker_index
        with open(f"{self.which}-{attempt}-{index}", "w") as file:
            file.write(os.environ["TF_CONFIG"])
        # Both are there at the same time, so that their ports have to differ.
        other = {"first": "second", "second": "first"}[self.which]
        while attempt == 0 and not os.path.exists(f"{other}-0-{index}"):
            pass
        current.gang.barrier()
        if self.which == "second" and attempt == 0:
            raise ValueError("deliberate in the first attempt")
        self.total = loops.totals(rounds=1)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.totals = [node.total for node in inputs]
        self.next(self.both)

    @step
    def both(self, inputs):
        self.totals = [gang.totals for gang in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Gangs()
"""


@pytest.mark.big
def test_a_foreach_of_gangs_and_a_second_attempt_have_a_tf_config_of_their_own(flow_run: FlowRunner) -> None:
    run = flow_run(GANGS, files=FILES, env=QUIET).ok(2 * START_S)
    assert run.artifact("both", "totals") == [[3.0, 3.0]] * 2
    clusters = {}
    for gang, attempt in (("first", 0), ("second", 0), ("second", 1)):
        told = [json.loads((run.folder / f"{gang}-{attempt}-{index}").read_text()) for index in range(2)]
        assert [config["task"] for config in told] == [{"type": "worker", "index": index} for index in range(2)]
        assert told[0]["cluster"] == told[1]["cluster"]
        clusters[gang, attempt] = told[0]["cluster"]["worker"]
    assert not (run.folder / "first-1-0").exists()
    assert len({*clusters["first", 0], *clusters["second", 0]}) == 4, clusters


@BIG
def test_run_and_task_ids_as_argo_names_them(flow_run: FlowRunner, tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(ONCE)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    run, task = "argo-helloworld-atykf", "t-7c2e1b90"
    commands = (
        f"init --run-id {run} --task-id {task}-params",
        f"step start --run-id {run} --task-id t-start --input-paths {run}/_parameters/{task}-params",
        f"step work --run-id {run} --task-id {task} --input-paths {run}/start/t-start --split-index 0 "
        "--ubf-context ubf_control",
        f"step join --run-id {run} --task-id t-join --input-paths {run}/work/:{task},{task}_node_1",
    )
    for command in commands:
        argv = [sys.executable, "flow.py", "--quiet", "--no-pylint", *command.split()]
        with Tree(argv, env=flow_environment({**QUIET, "METAFLOW_RUN_ID": run}), cwd=tmp_path) as tree:
            assert tree.wait(START_S) == 0, tree.dump()
            assert tree.left(5) == []
    metaflow.namespace(None)
    assert metaflow.Task(f"Once/{run}/join/t-join").data.totals == [3.0, 3.0]


ROLES = """
import json, os
from metaflow import FlowSpec, current, environment, step, tensorflow

OWN = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}

class Roles(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=4)

    @tensorflow(chief=True, ps=1, evaluator=True)
    @step
    def work(self):
        assert json.loads(os.environ["TF_CONFIG"]) == current.tensorflow.config
        self.seen = [current.tensorflow.config, current.tensorflow.is_chief, current.tensorflow.task_type]
        self.next(self.join)

    @step
    def join(self, inputs):
        self.roles = [node.seen for node in inputs]
        self.next(self.again)

    @step
    def again(self):
        self.next(self.own, num_parallel=2)

    @environment(vars={"TF_CONFIG": json.dumps(OWN)})
    @tensorflow
    @step
    def own(self):
        assert json.loads(os.environ["TF_CONFIG"]) == OWN == current.tensorflow.config
        self.seen = [current.tensorflow.is_users, current.tensorflow.is_chief, current.tensorflow.worker_index]
        self.next(self.owned)

    @step
    def owned(self, inputs):
        self.mine = [node.seen for node in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Roles()
"""


@pytest.mark.slow
def test_roles_and_a_tf_config_of_the_users_own(flow_run: FlowRunner) -> None:
    run = flow_run(ROLES, env=QUIET).ok(START_S)
    configs, chiefs, types = zip(*run.artifact("join", "roles"), strict=True)
    names = ("chief", "worker", "ps", "evaluator")
    assert types == names and chiefs == (True, False, False, False)
    assert [config["task"] for config in configs] == [{"type": name, "index": 0} for name in names]
    assert [sorted(config["cluster"]) for config in configs] == [["chief", "ps", "worker"]] * 4
    addresses = [address for (address,) in configs[0]["cluster"].values()]
    assert len(set(addresses)) == 3
    assert run.artifact("owned", "mine") == [[True, False, 1]] * 2
    assert "TF_CONFIG is your own" in run.output


AT_THE_TOP = """
import sys
if "work" in sys.argv:
    import tensorflow as tf
"""


@pytest.mark.slow
def test_using_tensorflow_at_the_top_of_the_flow_is_too_early(flow_run: FlowRunner) -> None:
    run = flow_run(AT_THE_TOP + "    tf.constant(1)\n" + ONCE, files=FILES, env=QUIET)
    said = run.fails(START_S)
    assert "TensorFlow was used in this process before the step's body" in said, run.dump()
    assert "current.tensorflow.run()" in said and run.left(5) == []


@BIG
def test_importing_tensorflow_at_the_top_of_the_flow_is_well(flow_run: FlowRunner) -> None:
    run = flow_run(AT_THE_TOP + ONCE, files=FILES, env=QUIET).ok(START_S)
    assert run.artifact("join", "totals") == [3.0, 3.0]

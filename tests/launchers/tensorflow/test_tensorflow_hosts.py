"""@tensorflow on hosts of their own, with the real TensorFlow: a strategy over a network, and what is lost of it.

Deadlines here tell "stopped" from "hangs"; how long an end really took is printed, and shown by ``pytest -rP``.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from support.frameworks.tensorflow import END_S, FILES, LOST_S, QUIET, START_S, ready, score
from support.remote import RemoteGang, RemoteTask, all_fail, remote_gang
from support.requirements import require_packages

BIG = pytest.mark.big

FLOW = """
import json, os
from metaflow import FlowSpec, current, step, tensorflow

import loops

class Remote(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @tensorflow
    @step
    def work(self):
        if os.environ["HOW"] == "train":
            path = current.tensorflow.save_path("saved/digits.keras")
            print("told", json.dumps([current.tensorflow.config, loops.train(path), path]), flush=True)
        elif os.environ.get("WHERE") == "run":
            current.tensorflow.run(loops.totals, [os.environ["HOW"]])
        else:
            loops.totals(os.environ["HOW"])
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the nodes work, with the modules that the flow imports."""
    require_packages("tensorflow", "sklearn")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def all_ready(gang: RemoteGang, how: str, where: str) -> list[RemoteTask]:
    """Every node's task, once all have summed up."""
    tasks = gang.start_all(HOW=how, WHERE=where, **QUIET)
    for node, task in enumerate(tasks):
        ready(task, node, 6.0)
    return tasks


@pytest.mark.slow
def test_three_hosts_learn_the_digits_and_the_chiefs_model_loads(folder: Path) -> None:
    with remote_gang(folder, FLOW, 3) as gang:
        outputs = [task.ok(START_S) for task in gang.start_all(HOW="train", **QUIET)]
        addresses = [gang.hosts[index].address for index in range(3)]
    told = [json.loads(re.findall(r"^told (.*)$", output, re.MULTILINE)[0]) for output in outputs]
    for index, (config, (accuracy, replicas, weights), path) in enumerate(told):
        assert config["task"] == {"type": "worker", "index": index}
        hosts = [address.partition(":")[0] for address in config["cluster"]["worker"]]
        assert hosts == addresses
        assert replicas == 3 and weights == pytest.approx(told[0][1][2]) and accuracy >= 0.95
        assert ("thrown-away-" in path) == (index > 0)
    print(f"accuracy on 3 hosts {told[0][1][0]:.4f}")
    assert [path.name for path in (folder / "saved").iterdir()] == ["digits.keras"]
    assert score(folder, folder / "saved" / "digits.keras") == pytest.approx(told[0][1][0])


@BIG
@pytest.mark.parametrize("where", ["body", "run"])
def test_what_a_worker_raises_is_told_on_all_hosts(folder: Path, where: str) -> None:
    with remote_gang(folder, FLOW, 3) as gang:
        tasks = all_ready(gang, "raise", where)
        said = all_fail(tasks, time.monotonic(), END_S, f"a worker that raises, {where}", may_crash=True)
    for index, output in enumerate(said):
        assert "ValueError: deliberate on node 1" in output, output
        assert index == 1 or "The first failure was on node 1 (gang1): " in output, output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "node"),
    [("body", 0), *(pytest.param(where, node, marks=BIG) for where, node in (("body", 1), ("run", 1), ("run", 0)))],
)
def test_a_killed_host_is_named_by_the_others(folder: Path, where: str, node: int) -> None:
    with remote_gang(folder, FLOW, 3) as gang:
        tasks = all_ready(gang, "wait", where)
        since = time.monotonic()
        gang.kill_host(node)
        live = [task for task in tasks if task is not tasks[node]]
        said = all_fail(live, since, LOST_S, f"the killed host {node}, {where}", may_crash=True)
    for output in said:
        assert re.search(rf"The first failure was on node {node}\b.*(was lost|answers neither|has died)", output), (
            output
        )


@BIG
@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize("where", ["body", "run"])
def test_a_host_whose_link_is_cut_is_named_and_ends_itself(folder: Path, where: str, node: int) -> None:
    with remote_gang(folder, FLOW, 3) as gang:
        tasks = all_ready(gang, "wait", where)
        since = time.monotonic()
        gang.hosts.cut(node)
        said = all_fail(tasks, since, LOST_S, f"a cut link of host {node}, {where}", may_crash=True)
    for index, output in enumerate(said):
        cause = rf"node {node}\b" if index != node else r"node \d"
        assert re.search(rf"The first failure was on {cause}.*or the network between them is cut", output), output

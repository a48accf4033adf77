"""@torchrun(min_nodes=N) of a gang of N nodes: it can do without none, so that the loss of one ends it as ever."""

from __future__ import annotations

import re
from typing import Any

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.flows import FlowRunner
from support.requirements import require_packages

from metaflow_extensions.gang.launchers.torchrun.decorator import TorchrunDecorator

RUN_S = 120.0
"""For a flow to end, on a machine that is busy with other tests."""

FLOW = """
import os, signal
from metaflow import FlowSpec, current, step, torchrun

class Lost(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=NODES)

    @torchrun(nproc_per_node=1, ATTRIBUTES)
    @step
    def work(self):
        WORK
        print("the body ended;", flush=True)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Lost()
"""

SCRIPT = """
import os, signal, time
if os.environ["GROUP_RANK"] == "1":
    os.kill(int(os.environ["TASK"]), signal.SIGKILL)
time.sleep(2 * (os.environ["GROUP_RANK"] != "1"))
"""

IN_RUN = """os.environ["TASK"] = str(os.getpid())
        current.torch.run(OPTIONSentrypoint="kills_its_task.py")"""

BEFORE_RUN = """if current.gang.node_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        print("gathered", current.gang.all_gather(1), flush=True)
        current.torch.run(entrypoint="kills_its_task.py")"""


def decorated(**attributes: Any) -> TorchrunDecorator:
    return TorchrunDecorator(attributes=attributes, statically_defined=True)


@pytest.mark.parametrize(
    ("attributes", "nodes", "most"),
    [
        ({"min_nodes": 3}, 3, 0),
        ({"min_nodes": 3, "restarts": 2}, 3, 0),
        ({"min_nodes": 3}, 2, 0),
        ({"spares": 2}, 1, 0),
        ({"spares": 1, "min_nodes": 3}, 3, 0),
        ({"spares": 0}, 3, 0),
        ({"min_nodes": 2}, 3, 1),
        ({"spares": 1}, 3, 1),
        ({"spares": 1, "min_nodes": 1}, 3, 2),
    ],
)
def test_a_gang_goes_on_without_nodes_where_it_can_spare_some(attributes: Any, nodes: int, most: int) -> None:
    found = decorated(**attributes)
    assert found.may_leave_out(nodes) == most
    assert found.tolerates_lost_nodes(nodes) is (most > 0)


def test_a_task_of_spin_is_one_node_that_has_none_to_spare() -> None:
    found = decorated(spares=2, min_nodes=2)
    found._is_spun = True
    assert found.may_leave_out(1) == 0 and not found.tolerates_lost_nodes(1)


@pytest.mark.parametrize(
    ("attributes", "work"),
    [
        ("min_nodes=3", IN_RUN.replace("OPTIONS", "")),
        pytest.param("min_nodes=3, restarts=2", IN_RUN.replace("OPTIONS", ""), marks=pytest.mark.slow),
        pytest.param("min_nodes=3", IN_RUN.replace("OPTIONS", '{"max_restarts": 0}, '), marks=pytest.mark.slow),
        ("min_nodes=3", BEFORE_RUN),
    ],
    ids=["in run()", "with restarts", "under the agent", "before run()"],
)
def test_a_lost_node_ends_a_gang_that_can_spare_none(flow_run: FlowRunner, attributes: str, work: str) -> None:
    require_packages("torch")
    flow = FLOW.replace("NODES", "3").replace("ATTRIBUTES", attributes).replace("WORK", work)
    run = flow_run(flow, files={"kills_its_task.py": SCRIPT})
    run.fails(RUN_S)
    assert re.search(r"The first failure was on node 1 \(.*\): the node's task", run.node_log("work", 0, "stderr"))
    assert "the body ended;" not in run.output and "gathered" not in run.output, run.dump()


def test_a_node_that_is_lost_in_run_together_is_no_good_end(flow_run: FlowRunner) -> None:
    require_packages("torch")
    work = """node, task = current.gang.node_index, os.getpid()
        current.gang.run_together(["sh", "-c", f"kill -9 {task}; sleep 9" if node == 1 else "sleep 2"])"""
    run = flow_run(FLOW.replace("NODES", "3").replace("ATTRIBUTES", "spares=1").replace("WORK", work))
    output = run.fails(RUN_S)
    assert "current.gang.run_together(): node 1 was lost before the program had ended there" in output, output
    assert "the body ended;" not in output


def test_a_full_preflight_leaves_the_refusal_of_min_nodes_as_it_is(flow_run: FlowRunner) -> None:
    require_packages("torch")
    flow = FLOW.replace("NODES", "2").replace("ATTRIBUTES", 'min_nodes=3, preflight="full"').replace("WORK", "pass")
    output = flow_run(flow).fails(RUN_S)
    assert "@torchrun(min_nodes=3): ranks run on 2 nodes at first" in output, output
    assert "Every node has to reach" not in output and "the body ended;" not in output

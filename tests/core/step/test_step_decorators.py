"""Metaflow's user step decorators around a gang's step: a failure cannot be caught, and what one adds is kept."""

from __future__ import annotations

import re

import pytest
from support.flows import FlowRunner

pytestmark = pytest.mark.slow

RUN_S = 150.0
"""For a flow to end, on a machine that is busy with other tests."""

FLOW = """
import os
from metaflow import FlowSpec, StepMutator, current, gang, step, user_step_decorator

HOW, WHO = os.environ["HOW"], os.environ.get("WHO", "01")

@user_step_decorator
def around(step_name, flow, inputs, attributes):
    here = str(current.parallel.node_index) in WHO
    try:
        yield
    except Exception:
        if HOW == "catches" and here:
            return
        raise
    if HOW == "raises after the body" and here:
        raise RuntimeError("no room for the report")
    if HOW == "yields twice" and here:
        yield
    if HOW == "gathers after the body" and here:
        current.gang.barrier()
    flow.added = current.parallel.node_index
    return None, True  # self.next() is called again, as for a step that a decorator has changed

class makes_a_gang(StepMutator):
    def pre_mutate(self, mutable_step):
        mutable_step.add_decorator("gang", deco_kwargs={"all_nodes_started_timeout": 60})
        mutable_step.add_decorator(around)

class Decorated(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @makes_a_gang
    @step
    def work(self):
        self.nodes = current.gang.all_gather(current.gang.node_index)
        if HOW == "catches" and not current.gang.is_control:
            raise ValueError("no shard")
        current.gang.barrier()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.kept = [[one.nodes, one.added] for one in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Decorated()
"""


@pytest.fixture(autouse=True)
def _needs_step_decorators() -> None:
    pytest.importorskip("metaflow.user_decorators.user_step_decorator", reason="Metaflow before 2.17")


def test_a_mutator_makes_a_step_a_gang_and_a_decorator_adds_to_it(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, env={"HOW": ""}).ok(RUN_S)
    assert run.artifact("join", "kept") == [[[0, 1], 0], [[0, 1], 1]]


@pytest.mark.parametrize("who", ["0", pytest.param("01", marks=pytest.mark.big)])
def test_a_failure_that_a_decorator_catches_fails_the_step_all_the_same(flow_run: FlowRunner, who: str) -> None:
    run = flow_run(FLOW, env={"HOW": "catches", "WHO": who})
    run.fails(RUN_S)
    for node in (0, 1):
        told = run.node_log("work", node, "stderr")
        assert ("[gang] A step decorator has caught the failure of the step's body." in told) == (str(node) in who)
    assert re.search(r"first failure was on node 1 \(.*\): the step's body raised ValueError: no shard", run.output)


@pytest.mark.parametrize(
    ("how", "who", "told"),
    [
        ("raises after the body", "1", "RuntimeError: no room for the report"),
        ("gathers after the body", "1", "current.gang.barrier() needs the gang, which works together"),
        pytest.param("raises after the body", "0", "RuntimeError: no room for the report", marks=pytest.mark.big),
        pytest.param("yields twice", "1", "should only yield once", marks=pytest.mark.big),
    ],
)
def test_what_a_decorator_raises_after_the_body_is_told(flow_run: FlowRunner, how: str, who: str, told: str) -> None:
    run = flow_run(FLOW, env={"HOW": how, "WHO": who})
    output = run.fails(RUN_S)
    assert told in run.node_log("work", int(who), "stderr")
    if who == "1":
        raised = "" if "gang" in told else r"Metaflow, after the step's body, raised \w+: .*"
        assert re.search(rf"on node 1 \(.*\): {raised}{re.escape(told.split(': ')[-1])}", output)

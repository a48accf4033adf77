"""Before the gang has formed: what every node knows of its place, on node 0 as on the others."""

from __future__ import annotations

import pytest
from support.flows import FlowRunner
from support.requirements import require_packages

pytestmark = pytest.mark.slow

RUN_S = 120.0
"""For a flow to end, on a machine that is busy with other tests."""

PLACES = """
import json, os
from metaflow import FlowSpec, current, gang, step, user_step_decorator

def place():
    here = current.parallel
    return [here.node_index, here.num_nodes, here.main_ip, here.control_task_id]

WHILE_LOADED = [os.environ.get("MF_PARALLEL_" + name) for name in ("NODE_INDEX", "NUM_NODES", "CONTROL_TASK_ID")]

@user_step_decorator
def asks(step_name, flow, inputs, attributes):
    before = place()
    yield
    flow.seen = [before, place()]

class Places(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @asks
    @gang
    @step
    def work(self):
        self.loaded = WHILE_LOADED
        self.control = current.gang.broadcast(current.task_id)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.seen = [(one.seen, one.loaded, one.control) for one in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Places()
"""


def test_every_node_knows_its_place_before_the_gang_forms(flow_run: FlowRunner) -> None:
    pytest.importorskip("metaflow.user_decorators.user_step_decorator", reason="Metaflow before 2.17")
    run = flow_run(PLACES).ok(RUN_S)
    for node, (seen, loaded, control) in enumerate(run.artifact("join", "seen")):
        assert seen == [[node, 2, "127.0.0.1", control]] * 2
        assert loaded == [str(node), "2", control]


CHECKPOINTS = """
import os
from metaflow import FlowSpec, checkpoint, current, gang, step

class Checkpoints(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @checkpoint(load_policy="eager")
    @gang
    @step
    def train(self):
        kept = current.checkpoint
        self.saw = [kept.task_identifier, kept.is_loaded, sorted(os.listdir(kept.directory))]
        if current.gang.is_control and not kept.is_loaded:
            with open(os.path.join(kept.directory, "state.txt"), "w") as file:
                file.write("epoch 7")
            kept.save(name="one")
        current.gang.barrier()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.saw = [one.saw for one in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Checkpoints()
"""


def test_all_nodes_load_the_checkpoint_that_node_0_saved_in_the_run_before(flow_run: FlowRunner) -> None:
    require_packages("metaflow_extensions.obcheckpoint")
    first = flow_run(CHECKPOINTS).ok(RUN_S)
    (name, *nothing), other = first.artifact("join", "saw")
    assert [name, *nothing] == other == [name, False, []]
    second = flow_run(CHECKPOINTS, folder=first.folder).ok(RUN_S)
    assert second.artifact("join", "saw") == [[name, True, ["state.txt"]]] * 2, "else ranks begin at different epochs"

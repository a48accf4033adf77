"""The local gang: who its nodes are told to be, and how they share this machine's GPUs."""

from __future__ import annotations

import os

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from support.flows import FlowRunner, without_gzip

from metaflow_extensions.gang.core.exceptions import BadAttribute
from metaflow_extensions.gang.core.guard.processes.process_table import GANG_MARKER
from metaflow_extensions.gang.core.rendezvous import local_nodes

RUN_S = 120.0
"""For a flow to end, on a machine that is busy with other tests."""

GPUS = """
import os
from metaflow import FlowSpec, Parameter, current, gang, resources, step

WHILE_LOADED = os.environ["CUDA_VISIBLE_DEVICES"]

class Gpus(FlowSpec):
    @step
    def start(self):
        self.next(self.all_of_them, self.one_each)

    @step
    def all_of_them(self):
        self.next(self.share, num_parallel=2)

    @step
    def one_each(self):
        self.next(self.ask, num_parallel=2)

    @gang
    @step
    def share(self):
        self.saw()
        self.next(self.share_join)

    @gang
    @resources(gpu=1)
    @step
    def ask(self):
        self.saw()
        self.next(self.ask_join)

    def saw(self):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == WHILE_LOADED, "what the flow file imports sees no other GPUs"
        assert "METAFLOW_GANG_GPU_SHARES" not in os.environ
        self.seen = current.gang.all_gather(os.environ["CUDA_VISIBLE_DEVICES"])
        self.counted = [node.gpus for node in current.gang.nodes]
        current.gang.run(["sh", "-c", "echo a command sees $CUDA_VISIBLE_DEVICES"])

    @step
    def share_join(self, inputs):
        self.share_seen = [(one.seen, one.counted) for one in inputs]
        self.next(self.both)

    @step
    def ask_join(self, inputs):
        self.ask_seen = [(one.seen, one.counted) for one in inputs]
        self.next(self.both)

    @step
    def both(self, inputs):
        self.share_seen, self.ask_seen = inputs.share_join.share_seen, inputs.ask_join.ask_seen
        self.outside = os.environ["CUDA_VISIBLE_DEVICES"]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Gpus()
"""


@pytest.mark.slow
def test_local_nodes_share_the_gpus_that_the_user_made_visible(flow_run: FlowRunner) -> None:
    run = flow_run(GPUS, env={"CUDA_VISIBLE_DEVICES": "0,1,2,3"}).ok(RUN_S)
    both = run.client()["both"].task.data
    assert both.share_seen == [(["0,1", "2,3"], [2, 2])] * 2
    assert both.ask_seen == [(["0", "1"], [1, 1])] * 2
    assert both.outside == "0,1,2,3", "the shares are the gang's, and end with it"
    assert "a command sees 2,3" in run.node_log("share", 1)


TOO_MANY = """
from metaflow import FlowSpec, gang, resources, step

class TooMany(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang
    @resources(gpu=3)
    @step
    def work(self):
        print("the body runs", flush=True)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    TooMany()
"""


def test_too_many_gpus_are_told_before_a_node_is_started(flow_run: FlowRunner) -> None:
    run = flow_run(TOO_MANY, env={"CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    run.fails(RUN_S)
    log = run.node_log("work", 0, "stderr")
    assert "2 nodes on this machine ask for 3 GPUs each, 6 in all, but it has 4 (CUDA_VISIBLE_DEVICES=0,1,2,3)." in log
    assert "Traceback" not in without_gzip(run.output), run.dump()
    assert "the body runs" not in run.output
    assert "[node 1]" not in run.output


def shares(monkeypatch: pytest.MonkeyPatch, visible: str | None, nodes: int, requested: int | None) -> list[str | None]:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    return [env.get("CUDA_VISIBLE_DEVICES") for env in local_nodes.node_environments(nodes, requested, "2", "abc")]


def test_shares_are_disjoint_and_a_notice_says_what_was_decided(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shares(monkeypatch, "GPU-a,GPU-b", 2, None) == ["GPU-a", "GPU-b"]
    assert shares(monkeypatch, "3", 1, None) == [None], "one node has all that there are"
    assert capsys.readouterr().err == ""
    assert shares(monkeypatch, "0,1,2", 2, None) == ["0", "1"]
    assert "[gang] The 2 local nodes get 1 GPU each; 1 of 3 stay unused." in capsys.readouterr().err
    assert shares(monkeypatch, "0", 2, None) == ["", ""]
    assert "NCCL refuses two ranks on one GPU" in capsys.readouterr().err
    assert shares(monkeypatch, "", 2, 1) == [None, None]
    assert "the local nodes run without" in capsys.readouterr().err
    with pytest.raises(BadAttribute, match="2 nodes on this machine ask for 2 GPUs each, 4 in all, but it has 3"):
        shares(monkeypatch, "0,1,2", 2, 2)


def test_each_node_is_told_who_it_is() -> None:
    first, second = local_nodes.node_environments(2, None, "4", "abc")
    assert first["MF_PARALLEL_NUM_NODES"] == second["MF_PARALLEL_NUM_NODES"] == "2"
    assert first["MF_PARALLEL_MAIN_IP"] == second["MF_PARALLEL_MAIN_IP"] == "127.0.0.1"
    assert first["MF_PARALLEL_CONTROL_TASK_ID"] == second["MF_PARALLEL_CONTROL_TASK_ID"] == "4"
    assert (first["MF_PARALLEL_NODE_INDEX"], second["MF_PARALLEL_NODE_INDEX"]) == ("0", "1")
    assert (first[GANG_MARKER], second[GANG_MARKER]) == ("abc.0", "abc.1")
    assert local_nodes.task_ids("4", 3) == ["4", "4_node_1", "4_node_2"]


def test_where_to_join_is_read_from_a_pipe_and_its_number_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.write(write, b'{"port": 1}')
    os.close(write)
    monkeypatch.setenv(local_nodes.MEETING_VARIABLE, str(read))
    assert local_nodes.read_meeting() == b'{"port": 1}'
    assert local_nodes.MEETING_VARIABLE not in os.environ, "the node's own children have nothing to join"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read)

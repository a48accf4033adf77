"""Under torchrun's agent the rank that was first is told, with its own words, before the agent can tell of it."""

from __future__ import annotations

import pytest
from support.flows import FlowRunner

pytestmark = pytest.mark.slow

END_S = 60.0

FLOW = """
import os
from metaflow import FlowSpec, Parameter, current, step, torchrun

class Early(FlowSpec):
    how = Parameter("how")
    kind = Parameter("kind")

    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @torchrun(nproc_per_node=2)
    @step
    def train(self):
        options = {"max_restarts": 0, **({"module": None} if self.kind == "module" else {})}
        entrypoint = {"module": "train", "script": "train.py"}[self.kind]
        current.torch.run(options, entrypoint=entrypoint, entrypoint_args=[self.how])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Early()
"""

TRAIN = """
import os, signal, sys, time
import torch.distributed as dist

dist.init_process_group("gloo")
rank = dist.get_rank()
if rank == 2:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it holds up its agent
dist.barrier()
if rank == 3:
    if sys.argv[1] == "raise":
        raise ValueError("no data")
    os._exit(5)
if rank == 2:
    time.sleep(100)
dist.barrier()
"""


@pytest.mark.parametrize(
    ("how", "kind", "ended", "words"),
    [
        pytest.param("raise", "script", "exited with code 1", "| ValueError: no data\n", marks=pytest.mark.big),
        ("_exit", "module", "exited with code 5 without an exception, as by os._exit() or the exit() of a C", ""),
    ],
)
def test_the_first_rank_is_told_although_its_agent_cannot_end(
    flow_run: FlowRunner, how: str, kind: str, ended: str, words: str
) -> None:
    files = {"train.py": TRAIN}
    run = flow_run(FLOW, "--how", how, "--kind", kind, files=files)
    run.fails(END_S)
    for node in (0, 1):
        text = run.node_log("train", node, "stderr").rpartition("> failed:\n")[2]
        who = "first failure was on node 1 (" if node == 0 else "rank 3 on node 1, running train"
        assert who in text and f" {ended}" in text and "rank 3" in text, run.dump()
        assert words in text and "Connection closed by peer" not in text and "ChildFailedError" not in text, run.dump()

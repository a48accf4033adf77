"""@torchrun, struck while its ranks work together over gloo, under both ways of starting them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.faults import kill_process
from support.flows import FlowRun, FlowRunner

pytestmark = pytest.mark.slow

START_S = 120.0
"""For four ranks to import torch, on a machine that is busy with other tests."""

END_S = 20.0
"""For a run to end after it was struck: what it is meant to take is 5 s, on a machine that is not busy."""

FLOW = """
import os
from metaflow import FlowSpec, Parameter, current, step, torchrun

class Ranks(FlowSpec):
    launcher = Parameter("launcher", default="direct")
    how = Parameter("how", default="work")

    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @torchrun(nproc_per_node=2)
    @step
    def work(self):
        print(f"task {current.gang.node_index} {os.getpid()};", flush=True)
        args = {"monitor_interval": 0.1} if self.launcher == "torchrun" else None
        current.torch.run(args, entrypoint="ranks.py", entrypoint_args={"how": self.how})
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Ranks()
"""

RANKS = """
import os, subprocess, sys
import torch, torch.distributed as dist

rank, how = int(os.environ["RANK"]), sys.argv[2]
if how == "session" and os.getpid() != os.getsid(0):
    os.setsid()
dist.init_process_group("gloo")
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
total = torch.ones(1)
dist.all_reduce(total)
print(f"rank {rank} {os.getpid()} of {total.item():.0f};", flush=True)
while True:
    if how == "raise" and rank == 3:
        raise RuntimeError("deliberate in rank 3")
    dist.all_reduce(torch.ones(1))
"""


def ready(run: FlowRun) -> tuple[dict[int, int], dict[int, int]]:
    """Wait until all four ranks have met; pids of the nodes' tasks and of the ranks."""
    pattern = re.compile(r"rank (\d) (\d+) of 4;")
    run.wait_for(pattern, START_S, count=4)
    tasks = {int(m[1]): int(m[2]) for m in re.finditer(r"task (\d) (\d+);", run.output)}
    return tasks, {int(m[1]): int(m[2]) for m in pattern.finditer(run.output)}


@contextmanager
def ends_in_time(run: FlowRun, what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    run.fails(END_S)
    print(f"{what}: the run ended after {time.monotonic() - started:.1f} s")


both = pytest.mark.parametrize("launcher", ["direct", "torchrun"])


@both
@pytest.mark.parametrize("how", ["work", "session"])
def test_a_killed_rank_is_named_on_every_node(flow_run: FlowRunner, launcher: str, how: str) -> None:
    run = flow_run(FLOW, "--launcher", launcher, "--how", how, files={"ranks.py": RANKS})
    _, ranks = ready(run)
    with ends_in_time(run, f"SIGKILL of rank 3 ({launcher}, {how})"):
        kill_process(ranks[3])
    assert re.search(r"node 1 \(.*\): rank 3 was killed by SIGKILL", run.node_log("work", 0, "stderr")), run.dump()
    assert "rank 3 on node 1, running ranks.py, was killed by SIGKILL" in run.node_log("work", 1, "stderr")
    assert "rank 2" in run.node_log("work", 1), "its own log"


@both
def test_a_rank_that_raises_is_named_with_its_traceback(flow_run: FlowRunner, launcher: str) -> None:
    run = flow_run(FLOW, "--launcher", launcher, "--how", "raise", files={"ranks.py": RANKS})
    run.fails(START_S)
    log = run.node_log("work", 0, "stderr")
    # The exception may leave threads of the collective behind, which then abort Python on its way out.
    ended = r"(exited with code 1|raised an exception, and was aborted on its way out \(SIGABRT\))"
    assert re.search(rf"first failure was on node 1 \(.*\): rank 3 {ended}", log), run.dump()
    assert 'raise RuntimeError("deliberate in rank 3")' in log
    assert "RuntimeError: deliberate in rank 3" in run.node_log("work", 1, "stderr")


@both
@pytest.mark.parametrize("node", [0, 1])
def test_a_killed_task_ends_the_ranks_of_all_nodes(flow_run: FlowRunner, launcher: str, node: int) -> None:
    run = flow_run(FLOW, "--launcher", launcher, files={"ranks.py": RANKS})
    tasks, _ = ready(run)
    with ends_in_time(run, f"SIGKILL of node {node}'s task ({launcher})"):
        kill_process(tasks[node])
    assert re.search(rf"node {node} \(.*\): the node's task", run.node_log("work", 1 - node, "stderr")), run.dump()
    assert "rank 2" in run.node_log("work", 1)

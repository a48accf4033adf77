"""Mistakes of users: each is one sentence that says what to do, as early as it can be known, and nothing is started."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
from support.faults import squatter
from support.flows import FlowRun, FlowRunner, without_gzip

RUN_S = 120.0
"""For a flow to end, on a machine that is busy with other tests."""

BEFORE = """
from metaflow import FlowSpec, catch, gang, parallel, step, torchrun

class Refused(FlowSpec):
    @step
    def start(self):
        self.items = [1, 2]
        self.next(self.work, {how})

    {decorators}
    @step
    def work(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Refused()
"""

SECONDS = "all_nodes_started_timeout is a number of seconds greater than 0 and at most 604800."
PORT = "@torchrun(master_port=...) is a port from 1 to 65535, or left out"
PROCESSES = "nproc_per_node is the number of processes on each node, 1 or more, or one of"
LAUNCHER = 'it is "direct" (the gang starts the ranks) or "torchrun" (its agent does), or left out.'
BEFORE_ANYTHING = {
    ("@catch @gang",): "Step work has @catch beside @gang: a gang fails as one",
    ("@torchrun @catch(var='x')",): "Step work has @catch beside @torchrun: a gang fails as one",
    ("@gang @torchrun",): "a step has one launcher. Use a step for each.",
    # Metaflow's own checks of the graph come first, and say what to do in its own words.
    ("@gang", "foreach='items'"): "is not called with self.next(num_parallel=...) from step start.",
    ("@gang", ""): "it is not preceded by a split",
    ("@gang(all_nodes_started_timeout=0)",): f"@gang(all_nodes_started_timeout=0): {SECONDS}",
    ("@torchrun(all_nodes_started_timeout='soon')",): f"@torchrun(all_nodes_started_timeout='soon'): {SECONDS}",
    ("@gang(all_nodes_started_timeout=float('nan'))",): f"@gang(all_nodes_started_timeout=nan): {SECONDS}",
    (
        "@gang(all_nodes_started_timeout=604801)",
    ): f"@gang(all_nodes_started_timeout=604801): {SECONDS}",  # None: the setting counts
    ("@gang(all_nodes_started_timeout=True)",): f"@gang(all_nodes_started_timeout=True): {SECONDS}",
    ("@torchrun(launcher='mpirun')",): f"@torchrun(launcher='mpirun'): {LAUNCHER}",
    (
        "@torchrun(nproc_per_node=0)",
    ): f'{PROCESSES} "auto" (the node\'s GPUs or NeuronCores, or 1), "gpu" and "cpu"; not 0.',
    ("@torchrun(nproc_per_node='many')",): '"gpu" and "cpu"; not \'many\'.',
    ("@torchrun(master_port=70000)",): f"{PORT}, so that a free one is agreed upon; not 70000.",
    ("@torchrun(master_port='http')",): f"{PORT}, so that a free one is agreed upon; not 'http'.",
}


def said(run: FlowRun) -> str:
    """All output, Metaflow's time and task before each line left out and its lines joined."""
    lines = [re.sub(r"^\d{4}-\S+ \S+ (\[\S+ \(pid \d+\)\] )?", "", line) for line in run.output.splitlines()]
    return " ".join(line.strip() for line in lines)


@pytest.mark.slow
def test_what_the_decorators_say_is_checked_before_anything_is_scheduled(flow_run: FlowRunner) -> None:
    runs = {}
    for written in BEFORE_ANYTHING:
        decorators, how = (*written, "num_parallel=2")[:2]
        source = BEFORE.format(decorators=decorators.replace(" @", "\n    @"), how=how)
        runs[written] = flow_run(source.replace("(self.work, )", "(self.work)"))
    for written, sentence in BEFORE_ANYTHING.items():
        run = runs[written]
        run.fails(RUN_S)
        assert sentence in said(run), f"{written}: {run.dump()}"
        assert "Traceback" not in without_gzip(run.output), run.dump()
        assert "Task is starting" not in run.output, run.dump()


RUNNING = """
from metaflow import FlowSpec, Parameter, current, step, torchrun

def refused(**arguments):
    try:
        current.torch.run(**arguments)
    except Exception as error:
        print("REFUSED", type(error).__name__, error, flush=True)
    else:
        raise AssertionError(f"{arguments} were not refused")

class Refused(FlowSpec):
    how = Parameter("how", default="")

    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @torchrun(master_port=PORT)
    @step
    def work(self):
        print("the body runs", flush=True)
        if self.how == "caught":
            refused(entrypoint="fine.py", torchrun_args={"nnodes": "1:2"})
            refused(entrypoint="fine.py", torchrun_args={"nnodes": 3})
            refused(entrypoint="fine.py", torchrun_args={"node_rank": 7})
            refused(entrypoint="fine.py", nproc_per_node="gpu")
            refused(entrypoint="fine.py", nproc_per_node=-1)
            refused(entrypoint="fine.py", torchrun_args={"master_addr": "192.0.2.1"})
            refused(entrypoint="fine.py", torchrun_args={"module": "yes"})
            refused(entrypoint="fine.py", push_results_dir_to_cloud=True)
            refused(entrypoint=lambda: None)
            refused(entrypoint=7)
            refused()
            current.gang.barrier()
            current.torch.run(entrypoint="fin.py")
        current.torch.run(entrypoint="fine.py")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Refused()
"""

REFUSED = [
    "torchrun_args has nnodes=1:2, but a gang has a fixed number of nodes, here 2",
    "torchrun_args has nnodes=3, but this gang has 2. Leave nnodes out; num_parallel sets it.",
    "torchrun_args has node_rank=7 on node 1. Leave node_rank out: each node knows its own.",
    'nproc_per_node="gpu", but this node has no GPU.',
    f'{PROCESSES} "auto" (the node\'s GPUs or NeuronCores, or 1), "gpu" and "cpu"; not -1.',
    "torchrun_args has master_addr=192.0.2.1, but node 0 of this gang",
    "torchrun_args: module takes no value",
    "push_results_dir_to_cloud needs local_output_dir",
    "lambda",
    "The entrypoint is a int: 7. Give the path of a script, or a function.",
    "run() needs an entrypoint: the path of a script",
]


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_what_a_call_says_is_checked_before_a_process_is_started(flow_run: FlowRunner) -> None:
    run = flow_run(RUNNING.replace("PORT", "None"), "--how", "caught", files={"fine.py": "print('a rank ran')\n"},
                   env={"CUDA_VISIBLE_DEVICES": ""})  # fmt: skip
    run.fails(RUN_S)
    log = run.node_log("work", 1)
    for refused, sentence in zip(re.findall("^REFUSED BadAttribute (.*)$", log, re.MULTILINE), REFUSED, strict=True):
        assert sentence in refused
    misspelt = re.compile(r"There is no script \S+/fin\.py\. Did you mean fine\.py")
    for node in (0, 1):
        assert misspelt.search(run.node_log("work", node, "stderr")), run.dump()
    assert "a rank ran" not in run.output
    assert "Traceback" not in without_gzip(run.output), run.dump()


def test_a_master_port_that_another_program_has_is_told_with_its_number(flow_run: FlowRunner, free_port: int) -> None:
    with squatter(free_port):
        run = flow_run(RUNNING.replace("PORT", str(free_port)), files={"fine.py": "print('a rank ran')\n"})
        run.fails(RUN_S)
    for node in (0, 1):
        log = run.node_log("work", node, "stderr")
        assert str(free_port) in log and "in use" in log.lower(), run.dump()
    assert "a rank ran" not in run.output
    assert "Traceback" not in without_gzip(run.output), run.dump()


HIDE = """
import sys
from importlib.machinery import PathFinder

class WithoutTorch(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "torch" else super().find_spec(name, path, target)

sys.meta_path = [WithoutTorch if finder is PathFinder else finder for finder in sys.meta_path]
"""


def test_a_missing_torch_is_told_before_the_gang_forms(flow_run: FlowRunner, tmp_path: Path) -> None:
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(HIDE)
    path = os.pathsep.join(filter(None, [str(tmp_path / "hide"), os.environ.get("PYTHONPATH")]))
    run = flow_run(RUNNING.replace("PORT", "None"), env={"PYTHONPATH": path})
    run.fails(RUN_S)
    told = "Step work needs PyTorch, and its environment has none."
    assert told in said(run), run.dump()
    assert "pip install torch" in said(run)
    assert "the body runs" not in run.output
    assert "Traceback" not in without_gzip(run.output), run.dump()

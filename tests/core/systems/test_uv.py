"""A gang of a project that uv keeps: ``--environment=uv``, with the real uv, which needs no network for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.flows import FlowRunner
from support.requirements import require_tool

pytestmark = pytest.mark.slow

RUN_S = 120.0
"""For a flow to end, on a machine that is busy with other tests."""

PROJECT = """
[project]
name = "in-uv"
version = "0"
requires-python = ">=3.10"
dependencies = []
"""

FLOW = """
import os, sys
from metaflow import FlowSpec, current, gang, step

class InUv(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=3)

    @gang
    @step
    def work(self):
        self.seen = current.gang.all_gather(sys.executable)
        print(f"node {current.gang.node_index} was here", flush=True)
        current.gang.run([sys.executable, "-c", "print('a command')"])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.seen = [one.seen for one in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    InUv()
"""


def test_all_nodes_run_by_the_interpreter_that_uv_has_chosen(flow_run: FlowRunner, tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    tool = str(uv) if uv.exists() else require_tool("uv")
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(PROJECT)
    offline = {"UV_OFFLINE": "1", "UV_NO_SYNC": "1", "UV_PROJECT_ENVIRONMENT": sys.prefix, "UV_NO_CACHE": "1"}
    subprocess.run([tool, "lock", "--offline", "--python", sys.executable], cwd=project, check=True, timeout=60)
    run = flow_run(
        FLOW,
        folder=project,
        env=offline,
        options=("--environment", "uv"),
        python=(tool, "run", "--no-sync", "python"),
    ).ok(RUN_S)
    (seen, *others) = run.artifact("join", "seen")
    assert others == [seen] * 2
    assert len(set(seen)) == 1 and Path(seen[0]).resolve() == Path(sys.executable).resolve()
    assert run.node_log("work", 2) == "node 2 was here\na command\n"

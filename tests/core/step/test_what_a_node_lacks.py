"""What a node's machine or Python lacks is named in one sentence, before the step's body runs anywhere."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from support.flows import FlowRunner
from support.remote import START_S, all_fail, remote_gang
from support.requirements import require_tool

RUN_S = 120.0
"""For a flow to end, on a machine that is busy with other tests."""

FLOW = """
import os
from metaflow import FlowSpec, gang, mpi, step

deco = gang if os.environ.get("UNDER") == "gang" else mpi(transport="channel")

class Lacks(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @deco
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
    Lacks()
"""

NO_TLS = 'raise ImportError("No module named _ssl")'


def test_a_hard_limit_of_open_files_below_the_nodes_is_told_before_any_is_started(flow_run: FlowRunner) -> None:
    limited = (require_tool("prlimit"), "--nofile=44:44", sys.executable)
    output = flow_run(FLOW, env={"UNDER": "gang", "NODES": "6"}, python=limited).fails(RUN_S)
    told = "A gang of 6 nodes needs 45 open files in the guard of node 0, and the hard limit there is 44 (ulimit -Hn)."
    assert told in output and "the body runs" not in output, output


def test_a_python_without_ssl_is_told(flow_run: FlowRunner, tmp_path: Path) -> None:
    (tmp_path / "_ssl.py").write_text(NO_TLS)
    output = flow_run(FLOW, env={"UNDER": "gang", "NODES": "2", "PYTHONPATH": str(tmp_path)}).fails(RUN_S)
    assert f"This node's Python ({sys.executable}) has no module ssl (No module named _ssl)" in output
    assert "the body runs" not in output, output


def test_a_temporary_folder_that_starts_no_programs_is_told_by_all_nodes(tmp_path: Path) -> None:
    require_tool("mpirun")
    with remote_gang(tmp_path, FLOW, 2) as gang:
        gang.hosts[1].run(["mount", "-t", "tmpfs", "-o", "noexec", "tmpfs", "/mnt"])
        tasks = [gang.start(0), gang.start(1, TMPDIR="/mnt")]
        tasks[0].wait_for("The gang failed", START_S)
        for output in all_fail(tasks, time.monotonic(), RUN_S, "a TMPDIR that is mounted noexec"):
            assert re.search(
                r"The temporary folder of this node, /mnt, is on a file system that starts no progr", output
            )
            assert "the body runs" not in output, output
        assert "The first failure was on node 1" in tasks[0].output, tasks[0].dump()

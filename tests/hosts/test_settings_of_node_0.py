"""The settings of node 0 count on the other nodes."""

from __future__ import annotations

import time
from pathlib import Path

from support.remote import all_fail, remote_gang

END_S = 20.0
"""For tasks to end after a failure, on a machine that is busy."""

FLOW = """
import os, time
from metaflow import FlowSpec, current, gang, step

class Settings(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang(all_nodes_started_timeout=60)
    @step
    def work(self):
        current.gang.barrier()
        print("ready", flush=True)
        if current.gang.node_index:
            try:
                current.gang.run(["sh", "-c", "echo $$ > pid; trap '' TERM; echo up; while :; do sleep 0.1; done"])
            finally:
                while os.path.exists("/proc/" + open("pid").read().strip()):
                    time.sleep(0.02)
                print("its command is gone", flush=True)
                time.sleep(600)
        while not os.path.exists("fail"):
            time.sleep(0.02)
        self.what = {}["on node 0"]
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Settings()
"""


def test_node_0_s_graces_count_on_the_other_node(tmp_path: Path) -> None:
    """Node 1 has others in its own environment: it would wait for a minute."""
    own = {"METAFLOW_GANG_BODY_GRACE": "60", "METAFLOW_GANG_KILL_GRACE": "60"}
    with remote_gang(tmp_path, FLOW, 2) as gang:
        tasks = [
            gang.start(0, METAFLOW_GANG_BODY_GRACE="1.25", METAFLOW_GANG_KILL_GRACE="0.25"),
            gang.start(1, **own),
        ]
        tasks[0].wait_for("ready")
        tasks[1].wait_for("up")
        since = time.monotonic()
        (tmp_path / "fail").touch()
        assert tasks[1].wait(END_S), tasks[1].dump()
        assert "node 1's step did not end within 1.25 s of being interrupted" in tasks[1].output
        assert "its command is gone" in tasks[1].output, "killed after 0.25 s, though it ignores SIGTERM"
        all_fail(tasks[:1], since, END_S, "node 0")

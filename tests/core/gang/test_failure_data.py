"""What a run leaves behind about its gang: one line with the phases' times."""

from __future__ import annotations

import re

from support.flows import FlowRunner

FLOW = """
import time
from metaflow import FlowSpec, current, gang, step

class Phases(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang
    @step
    def work(self):
        current.gang.run(["sh", "-c", "echo a line"])
        time.sleep(1.5 * current.gang.node_index)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Phases()
"""


def test_phases_of_a_gang_that_ends_well(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW).ok(90)
    lines = re.findall(r"\[gang\] (joined .*)", run.output)
    assert len(lines) == 1, run.output
    found = re.fullmatch(
        r"joined ([\d.]+) s, (?:launcher .* s, )?ranks [\d.]+ s, body ([\d.]+) s, stored [\d.]+ s", lines[0]
    )
    assert found and float(found[1]) > 0.2, lines
    assert 1.5 <= float(found[2]) < 30, "the last node's body counts"
    assert lines[0] in run.node_log("work", 0, "stderr")

"""The samples of a gang as a run has them: node 0 gets those of all nodes once it asks."""

from __future__ import annotations

from support.flows import FlowRunner

FLOW = """
import os, time
from metaflow import FlowSpec, current, gang, step

class Samples(FlowSpec):
    @step
    def start(self):
        self.done = os.path.abspath("done")
        self.next(self.work, num_parallel=2)

    @gang
    @step
    def work(self):
        if current.gang.node_index == 1:
            current.gang.run(["sh", "-c", f"echo loss 3; while [ ! -e {self.done} ]; do sleep 0.2; done"])
        else:
            end = time.monotonic() + 40
            while time.monotonic() < end:
                self.found, _ = current.gang._link.request("samples", gang=True)
                if len(self.found["nodes"]) == 2 and len(self.found["samples"]) > 1:
                    break
                time.sleep(0.2)
            last = self.found["samples"][-1]["at"]
            self.newer = current.gang._link.request("samples", since=last)[0]["samples"]
            open(self.done, "w").close()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.found, self.newer = inputs[0].found, inputs[0].newer
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Samples()
"""


def test_node_0_has_the_samples_of_all_nodes(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW).ok(120)
    found = run.artifact("join", "found")
    assert found["ranks"] == [] and sorted(found["nodes"]) == ["0", "1"]
    (rank,) = found["nodes"]["1"]["ranks"]
    assert rank["line"] == "loss 3" and rank["rss"] > 0 and rank["line_at"] > 0 and rank["state"] in "RS"
    for sample in [*found["samples"], *found["nodes"].values()]:
        assert 0 < sample["memory"] <= sample["limit"] and sample["cpu"] >= 0
    assert run.artifact("join", "newer") == []

"""The card of a real gang, as its datastore has it: a short step, a long one, a failed rank, a killed node 0."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from support.flows import FlowRun, FlowRunner

LIMIT_S = 120.0

FLOW = """
import os, signal, sys, time
from metaflow import FlowSpec, current, gang, step

RANK = '''
import os, sys, time
for number in range(int(sys.argv[1])):
    print("step", number, flush=True)
    time.sleep(0.5)
if sys.argv[2] == "fails":
    raise ValueError("no data left")
'''

class Carded(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang(ATTRIBUTES)
    @step
    def work(self):
        what = os.environ["WHAT"]
        is_victim = current.gang.node_index == (0 if what == "killed" else 1)
        current.gang.barrier()
        steps = {"short": 1}.get(what, 16)
        if what == "killed" and is_victim:
            time.sleep(8)
            os.kill(os.getpid(), signal.SIGKILL)
        current.gang.run([sys.executable, "-c", RANK, str(steps), what if is_victim else ""])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Carded()
"""


def started(flow_run: FlowRunner, what: str, attributes: str = "card=True") -> FlowRun:
    env = {"WHAT": what, "MY_SECRET_TOKEN": "planted-secret"}
    return flow_run(FLOW.replace("ATTRIBUTES", attributes), env=env)


def cards(flow_run: FlowRunner) -> list[str]:
    """The pages in the datastore."""
    return [path.read_text() for path in flow_run.folder.rglob("gang-*.html")]


def data_of(page: str) -> dict[str, Any]:
    """The snapshot in a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def shown(flow_run: FlowRunner, what: str, code: int) -> dict[str, Any]:
    run = started(flow_run, what)
    assert run.wait(LIMIT_S) == code, run.output
    (page,) = cards(flow_run)
    assert "planted-secret" not in page
    return data_of(page)


def test_a_short_step_has_a_card(flow_run: FlowRunner) -> None:
    data = shown(flow_run, "short", 0)
    assert (data["state"], data["launcher"]) == ("succeeded", "@gang")
    assert all({"started", "joined", "ranks", "done"} <= set(node["at"]) for node in data["nodes"])
    assert data["launches"][0]["argv"][1] == "-c"


@pytest.mark.slow
def test_a_longer_step_has_samples_and_its_ranks(flow_run: FlowRunner) -> None:
    data = shown(flow_run, "long", 0)
    assert data["state"] == "succeeded"
    assert {"cpu", "memory"} <= set(data["series"]["values"])
    assert [rank["node"] for rank in data["ranks"]] == [0, 1]
    assert all(rank["line"].startswith("step ") for rank in data["ranks"])


@pytest.mark.slow
def test_a_failed_rank_is_the_first_thing_on_the_card(flow_run: FlowRunner) -> None:
    data = shown(flow_run, "fails", 1)
    assert data["state"] == "failed"
    assert "node 1" in data["failure"]["title"]
    assert "ValueError: no data left" in data["failure"]["text"]


@pytest.mark.slow
def test_a_killed_node_0_leaves_a_card_with_the_cause(flow_run: FlowRunner) -> None:
    data = shown(flow_run, "killed", 1)
    assert data["state"] == "failed"
    assert "node 0" in data["failure"]["title"] and "SIGKILL" in data["failure"]["title"]


def test_without_the_attribute_there_is_none(flow_run: FlowRunner) -> None:
    started(flow_run, "short", "").ok(LIMIT_S)
    assert not cards(flow_run)

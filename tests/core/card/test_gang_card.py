"""The card of a real gang, as its datastore has it: a short step, a long one, a failed rank, a killed node 0."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
from support.flows import FlowRun, FlowRunner, cards, data_of, flow_environment

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
        steps = {"short": 1, "moves": 1}.get(what, 16)
        if what == "killed" and is_victim:
            time.sleep(8)
            os.kill(os.getpid(), signal.SIGKILL)
        current.gang.run([sys.executable, "-c", RANK, str(steps), what if is_victim else ""])
        if what == "moves":
            os.chdir("/")
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


def started(flow_run: FlowRunner, what: str, attributes: str = "") -> FlowRun:
    env = {"WHAT": what, "MY_SECRET_TOKEN": "planted-secret"}
    return flow_run(FLOW.replace("ATTRIBUTES", attributes), env=env)


BESIDE_THE_FLOW = {"METAFLOW_DATASTORE_SYSROOT_LOCAL": None}
"""Metaflow writes local cards below the working folder, and reads them below the datastore: let it be the same."""

LOOK = """
import json, sys
from metaflow import Run, namespace
from metaflow.cards import get_cards

namespace(None)
run = Run(sys.argv[1])
tasks = control, other = sorted(run["work"].tasks(), key=lambda task: len(task.id))
(plain,) = get_cards(run["start"].task)
(card,) = get_cards(control, id="nodes")
ids = lambda **those: [[found.id for found in get_cards(task, **those)] for task in tasks]
print(json.dumps({
    "start": plain.get(), "type": card.type, "page": card.get(), "control": control.id,
    "gang": ids(type="gang"), "all": ids(),
}))
"""


def shown(flow_run: FlowRunner, what: str, code: int) -> dict[str, Any]:
    run = started(flow_run, what)
    assert run.wait(LIMIT_S) == code, run.output
    (page,) = cards(flow_run.folder)
    assert "planted-secret" not in page
    return data_of(page)


def test_a_short_step_has_a_card_and_the_log_says_how_to_see_it(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW.replace("ATTRIBUTES", ""), env={"WHAT": "short", **BESIDE_THE_FLOW})
    assert run.wait(LIMIT_S) == 0, run.output
    command = re.search(r"\[gang\] joined .*; card: python (\S+ card) view (\S+)\n", run.output)
    assert command is not None, run.output
    script, task = command.groups()
    argv = [sys.executable, *script.split(), "get", task]  # "view" opens a browser
    env = flow_environment(BESIDE_THE_FLOW)
    page = subprocess.run(
        argv, cwd=run.folder, env=env, capture_output=True, text=True, check=True, timeout=LIMIT_S
    ).stdout
    data = data_of(page)
    assert (data["state"], data["launcher"]) == ("succeeded", "@gang")
    assert all({"started", "joined", "ranks", "done"} <= set(node["at"]) for node in data["nodes"])
    assert data["launches"][0]["argv"][1] == "-c"


def test_a_body_that_changes_its_working_folder_has_its_card_where_metaflow_looks(flow_run: FlowRunner) -> None:
    assert shown(flow_run, "moves", 0)["state"] == "succeeded"


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


@pytest.mark.slow
def test_a_card_written_on_the_step_is_the_same_page(flow_run: FlowRunner) -> None:
    code = FLOW.replace(
        "@gang(ATTRIBUTES)", '@card(type="gang", id="nodes")\n    @gang\n    @card(type="blank", id="mine")'
    )
    code = code.replace("    @step\n    def start", '    @card(type="gang")\n    @step\n    def start')
    code = code.replace("import FlowSpec", "import FlowSpec, card")
    run = flow_run(code, env={"WHAT": "short", **BESIDE_THE_FLOW})
    run.ok(LIMIT_S)
    where = {"cwd": run.folder, "env": flow_environment(BESIDE_THE_FLOW), "text": True, "timeout": LIMIT_S}
    look = [sys.executable, "-c", LOOK, f"Carded/{run.run_id}"]
    found = json.loads(subprocess.run(look, capture_output=True, check=True, **where).stdout)
    assert "The step start has no gang" in found["start"]
    assert (found["type"], data_of(found["page"])["launcher"]) == ("gang", "@gang")
    # Node 1's task has none of the gang, and what else is on the step is as ever.
    assert found["gang"] == [["nodes"], []]
    assert [ids.count("mine") for ids in found["all"]] == [1, 1]
    command = [sys.executable, str(run.file), "card"]
    options = ["get", f"{run.run_id}/work/{found['control']}", "--id", "nodes"]
    got = subprocess.run([*command, *options], capture_output=True, check=True, **where).stdout
    assert data_of(got) == data_of(found["page"])
    port = free_port()
    options = ["server", "--run-id", run.run_id, "--port", str(port)]
    del where["timeout"]
    with subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, **where) as server:
        try:
            listed = {shown["label"]: shown for shown in asked(port, "runinfo")["cards"]}
            (label,) = (label for label, shown in listed.items() if shown["card_object"]["id"] == "nodes")
            live = asked(port, f"data/{listed[label]['card']}")
            assert live["payload"]["reload_token"] == "final"
            assert live["payload"]["data"] == data_of(got)
        finally:
            server.kill()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def asked(port: int, path: str) -> dict[str, Any]:
    """What the card server replies, once it is there."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=LIMIT_S) as reply:
                return dict(json.load(reply))
        except urllib.error.URLError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize(
    ("attributes", "setting", "count"), [("card=False", None, 0), ("", "0", 0), ("card=True", "0", 1)]
)
def test_the_attribute_and_the_setting_switch_it_off(
    flow_run: FlowRunner, attributes: str, setting: str | None, count: int
) -> None:
    run = flow_run(FLOW.replace("ATTRIBUTES", attributes), env={"WHAT": "short", "METAFLOW_GANG_CARD": setting})
    run.ok(LIMIT_S)
    assert len(cards(flow_run.folder)) == count
    assert ("; card: python" in run.output) == bool(count)

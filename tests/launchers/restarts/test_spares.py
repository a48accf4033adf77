"""@torchrun with spare nodes, on one machine: what takes a lost node's place, and what is told of it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from restart_flow import lines_about_restarts
from support.faults import kill_process
from support.flows import FlowRun, FlowRunner, cards, data_of, flow_environment
from support.frameworks.spares import flow, gone_on_after, losses, pids, steps, world
from support.processes import read_process, send_signal
from support.requirements import require_packages

START_S = 180.0
"""For four tasks, and three ranks with torch, on a machine of two cores that does more."""

TRAINS_S = 60.0


def training(flow_run: FlowRunner, attributes: str, step: int = 5, warm: bool = False, **env: str) -> FlowRun:
    """A gang whose ranks have made ``step`` and hold there."""
    require_packages("torch")
    run = flow_run(flow(f"warm={warm}, {attributes}"), env=env)
    (run.folder / f"hold-{step}").touch()
    run.wait_for(f"step {step} of rank 0 ", START_S)
    return run


def kill_node(run: FlowRun, node: int) -> float:
    """End a node's task and guard at once; when that was (epoch)."""
    processes = [read_process(pid) for pid in pids(run.output)[node]]
    now = time.time()
    assert all(process is not None and send_signal(process, signal.SIGKILL) for process in processes)
    return now


def go_on(run: FlowRun, step: int = 5) -> None:
    (run.folder / f"hold-{step}").unlink()


def left_out(run: FlowRun, node: int) -> str:
    return str(json.loads(run.node_tasks("work")[node].metadata_dict["gang-left-out"]))


def nodes_on_the_card(run: FlowRun) -> dict[int, str]:
    """What the card of a gang that has ended says of nodes that were left out, and of spare ones; the metadata of node
    0's task have the same, and ranks of nodes that were left out are none that the gang has.
    """
    (page,) = cards(run.folder)
    data = data_of(page)
    assert json.loads(run.node_tasks("work")[0].metadata_dict["gang-nodes"]) == data["roles"]
    out = {role["node"] for role in data["roles"] if role["state"] == "left out"}
    assert {node["index"] for node in data["nodes"] if "out" in node} == out
    assert data["ranks_in_all"] == 3, data["ranks"]
    assert all(0 <= role["at"] - data["started"] <= data["now"] - data["started"] for role in data["roles"])
    return {role["node"]: role["text"] for role in data["roles"]}


def why(run: FlowRun) -> str:
    """What ``metaflow-gang why`` says of the run, in words."""
    command = [str(Path(sys.executable).with_name("metaflow-gang")), "why", f"Spares/{run.run_id}"]
    done = subprocess.run(
        command, cwd=run.folder, env=flow_environment(), capture_output=True, text=True, check=True, timeout=TRAINS_S
    )
    return done.stdout


@pytest.mark.parametrize("agent", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_spare_node_takes_the_place_of_a_lost_one(flow_run: FlowRunner, agent: bool) -> None:
    run = training(flow_run, "spares=1", **({"AGENT": "1"} if agent else {}))
    since = kill_node(run, 1)
    run.wait_for("restart 1 of 1", TRAINS_S)
    go_on(run)
    run.ok(TRAINS_S)
    (line,) = lines_about_restarts(run.output, 1)
    assert re.fullmatch(r"restart 1 of 1: node 1 was lost: .*; node 3 takes its place", line), line
    assert world(run.output, since) == [(0, 0, 3), (1, 3, 3), (2, 2, 3)]
    print(f"the ranks went on after {gone_on_after(run.output, since, [0, 3, 2]):.1f} s")
    assert run.artifact("join", "joined") == [0, 2, 3]
    assert re.match("lost: ", left_out(run, 1))
    told = nodes_on_the_card(run)
    assert told[1].startswith(f"left out: {left_out(run, 1)[:40]}"), told
    assert told[3] == "spare, took the place of node 1 (node rank 1)" and len(told) == 2
    if agent:
        said = why(run)
        for node, text in told.items():
            line = rf"^  node {node}: {re.escape(text)}, since [-\d]+ [:\d]+ UTC$"
            assert re.search(line, said, re.MULTILINE), said
    assert [value[0] for value in run.artifact("join", "calls")[0]] == [0, 1, 2]
    if not agent:
        assert losses(run.output) == undisturbed(flow_run)


@pytest.mark.slow
def test_all_nodes_go_on_in_interpreters_that_have_waited(flow_run: FlowRunner) -> None:
    run = training(flow_run, "spares=1", warm=True)
    deadline = time.monotonic() + START_S
    while len(waiting := paused(run)) < 4 or any(not has_torch(pid) for pid in waiting):
        assert time.monotonic() < deadline, f"only {waiting} wait"
        time.sleep(0.1)
    since = kill_node(run, 1)
    run.wait_for("restart 1 of 1", TRAINS_S)
    go_on(run)
    run.ok(START_S)
    print(f"the ranks went on after {gone_on_after(run.output, since, [0, 3, 2]):.1f} s")
    of_ranks = {int(pid) for pid in re.findall(r"rank \d of 3 is (\d+);", run.output)[3:]}
    assert len(of_ranks) == 3 and of_ranks < waiting


def paused(run: FlowRun) -> set[int]:
    """The interpreters that wait."""
    return {process.pid for process in run.below() if "--paused" in process.command}


def has_torch(pid: int) -> bool:
    """Whether an interpreter has come to the end of importing torch, by the last library that it loads."""
    try:
        return "libtorch_python" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def undisturbed(flow_run: FlowRunner) -> dict[int, str]:
    run = flow_run(flow("restarts=1", 3)).ok(START_S)
    return losses(run.output)


@pytest.mark.slow
def test_without_a_spare_node_the_world_shrinks_and_then_the_gang_ends(flow_run: FlowRunner) -> None:
    run = training(flow_run, "spares=1, min_nodes=2", STEPS="1000000")
    kill_node(run, 1)
    run.wait_for("restart 1 of 2", TRAINS_S)
    go_on(run)
    run.wait_for(re.compile(r"step \d+ of rank 1 of 3 on 3 "), TRAINS_S)
    kill_node(run, 2)
    run.wait_for("restart 2 of 2", TRAINS_S)
    run.wait_for(re.compile(r"step \d+ of rank 1 of 2 on 3 "), TRAINS_S)
    kill_node(run, 3)
    run.fails(TRAINS_S)
    first, second = lines_about_restarts(run.output, 2)
    assert first.endswith("; node 3 takes its place"), first
    assert re.fullmatch(r"restart 2 of 2: node 2 was lost: .*; the ranks continue on 2 nodes", second), second
    log = run.node_log("work", 0, "stderr")
    assert re.search(r"The first failure was on node 3 ", log), run.dump()
    for line in (first, second):
        assert line in log
    assert "no spare node is left, and 1 node is fewer than the 2 that they need (min_nodes)" in log, run.dump()
    assert {node: left_out(run, node)[:6] for node in (1, 2, 3)} == dict.fromkeys((1, 2, 3), "lost: ")


def test_a_node_whose_ranks_fail_first_twice_is_left_out(flow_run: FlowRunner) -> None:
    run = flow_run(flow("spares=1, restarts=3"), env={"FATE": json.dumps({"1": 4}), "STEPS": "12"})
    run.ok(START_S + TRAINS_S)
    first, second = lines_about_restarts(run.output, 2)
    assert re.match(r"restart 1 of 3: rank 1 on node 1 was killed by SIGKILL", first) and "place" not in first, first
    assert re.match(r"restart 2 of 3: rank 1 on node 1 was killed by SIGKILL", second), second
    assert second.endswith("; node 1 is left out, since its ranks failed first 2 times; node 3 takes its place")
    assert left_out(run, 1) == "its ranks failed first 2 times"
    assert nodes_on_the_card(run) == {
        1: "left out: its ranks failed first 2 times",
        3: "spare, took the place of node 1 (node rank 1)",
    }
    assert run.artifact("join", "joined") == [0, 1, 2, 3], "its task is stored like any other"
    assert run.artifact("join", "of_spares") == [[[]]], "of the node that waits"
    assert {step.node for step in steps(run.output) if step.step == 11} == {0, 2, 3}


def test_a_lost_spare_node_is_only_told(flow_run: FlowRunner) -> None:
    run = training(flow_run, "spares=1")
    kill_node(run, 3)
    run.wait_for("node 3 ", TRAINS_S)
    run.wait_for("was lost: ", TRAINS_S)
    go_on(run)
    run.ok(TRAINS_S)
    lines_about_restarts(run.output, 0)
    assert len(re.findall(r"\[gang\] node 3 \(.*\) was lost: ", run.output)) == 1
    assert run.artifact("join", "joined") == [0, 1, 2]
    assert left_out(run, 3).startswith("lost: ")
    assert re.fullmatch("left out: lost: .*", nodes_on_the_card(run)[3])


def test_a_node_that_cannot_load_the_flow_file_is_left_out(flow_run: FlowRunner) -> None:
    require_packages("torch")
    begins = time.time()
    run = flow_run(flow("warm=False, spares=1"), env={"LACKS": "1", "STEPS": "3"}).ok(START_S)
    lacks = "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"
    why = f"the node's task exited with code 1 before it joined: {lacks}"
    assert run.output.count(f"[gang] node 1 did not join: {why}.\n") == 1, run.dump()
    assert "[gang] node 1 is left out; node 3 takes its place\n" in run.output, run.dump()
    lines_about_restarts(run.output, 0)
    assert world(run.output, begins) == [(0, 0, 3), (1, 3, 3), (2, 2, 3)]
    assert run.artifact("join", "joined") == [0, 2, 3]
    assert nodes_on_the_card(run) == {
        1: f"left out: it did not join: {why}",
        3: "spare, took the place of node 1 (node rank 1)",
    }


def test_the_loss_of_node_0_ends_the_gang(flow_run: FlowRunner) -> None:
    run = training(flow_run, "spares=1")
    kill_process(pids(run.output)[0][0])
    run.fails(TRAINS_S)
    lines_about_restarts(run.output, 0)
    assert re.search(r"first failure was on node 0 \(.*\): the node's task", run.node_log("work", 1, "stderr"))


@pytest.mark.slow
def test_a_node_that_is_lost_between_two_calls_is_not_in_the_next_one(flow_run: FlowRunner) -> None:
    run = training(flow_run, "spares=1", CALLS="2", STEPS="10")
    (run.folder / "between").touch()
    go_on(run)
    for node in range(4):
        run.wait_for(f"call 0 is over on node {node};", TRAINS_S)
    since = kill_node(run, 2)
    run.wait_for("was lost: ", TRAINS_S)
    (run.folder / "between").unlink()
    run.ok(TRAINS_S)
    lines_about_restarts(run.output, 0)
    assert world(run.output, since) == [(0, 0, 3), (1, 1, 3), (2, 3, 3)]
    assert losses(run.output, 0) == losses(run.output, 1)


@pytest.mark.slow
def test_a_node_that_is_preempted_saves_and_a_spare_one_takes_its_place(flow_run: FlowRunner) -> None:
    run = training(flow_run, "spares=1", SAVES="1")
    process = read_process(pids(run.output)[1][0])
    assert process is not None and send_signal(process, signal.SIGTERM)
    run.wait_for("restart 1 of 1", TRAINS_S)
    go_on(run)
    run.ok(TRAINS_S)
    (line,) = lines_about_restarts(run.output, 1)
    told = r"restart 1 of 1: node 1 was lost: was told to end \(SIGTERM\).*; node 3 takes its place"
    assert re.fullmatch(told, line), line
    assert re.findall(r"node (\d) has saved;", run.output) == ["1"]
    assert "rank 1 was told to end;" in run.output
    assert run.output.index("node 1 has saved;") < run.output.index("restart 1 of 1")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ("spares=-1", "@torchrun(spares=-1): spares is a whole number of nodes, 0 or more"),
        ("min_nodes='few'", "@torchrun(min_nodes='few'): min_nodes is a whole number of nodes, 1 or more"),
        ("spares=2", "@torchrun(spares=2) leaves no node for the ranks: num_parallel, which counts all nodes, is 2"),
    ],
)
def test_what_cannot_be_meant_is_refused(flow_run: FlowRunner, attributes: str, message: str) -> None:
    require_packages("torch")
    output = flow_run(flow(attributes, 2)).fails(START_S)
    assert message in output
    assert "up 0 " not in output

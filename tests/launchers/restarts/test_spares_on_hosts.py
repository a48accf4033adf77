"""@torchrun with a spare node on hosts with a network between them: a host that is cut off or killed is replaced."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.frameworks.packages import distribution, without
from support.frameworks.spares import flow, gone_on_after, losses, world
from support.remote import LOST_HOST_S, START_S, remote_gang
from support.requirements import require_packages

from metaflow_extensions.gang import core

pytestmark = pytest.mark.slow

TOLD_S = 2 * LOST_HOST_S
"""A host that is cut off is noticed after ``lost_host_timeout``, on a machine that is busy with other tests."""


@pytest.mark.parametrize("how", ["cut off", "killed"])
def test_a_spare_node_takes_the_place_of_a_lost_host(tmp_path: Path, how: str) -> None:
    require_packages("torch")
    hold = tmp_path / "hold-5"
    hold.touch()
    with remote_gang(tmp_path, flow("spares=1, warm=False", 3), 3) as gang:
        tasks = gang.start_all()
        tasks[0].wait_for("step 5 of rank 0 ", 2 * START_S)
        since = time.time()
        if how == "cut off":
            gang.hosts.cut(1)
        else:
            gang.kill_host(1)
        found = tasks[0].wait_for(re.compile(r"\[gang\] restart 1 of 1: (.*)"), TOLD_S)
        print(f"{how}: told after {time.time() - since:.1f} s")
        hold.unlink()
        said = "\n".join(task.ok(2 * START_S) for task in (tasks[0], tasks[2]))
        why = "the connection from it to node 0 was lost" if how == "killed" else r"has not answered node 0 for \d+ s"
        assert re.fullmatch(rf"node 1 \(gang1\) was lost: {why}.*; node 2 takes its place", found[1]), found[1]
        assert world(said, since) == [(0, 0, 2), (1, 2, 2)]
        assert sorted(losses(said)) == list(range(40))
        print(f"{how}: the ranks went on after {gone_on_after(said, since, [0, 2]):.1f} s")
        assert "This cluster ends the whole job when one of its pods is lost" in tasks[0].output
        if how == "cut off":
            assert "or the network between them is cut" in tasks[1].fails(TOLD_S)
        gang.wait_until_gone()


NOWHERE = "02:00:00:00:00:99"
"""A hardware address that no host has: what is sent there is lost without a sound, as by a firewall."""


def test_a_node_that_does_not_reach_another_one_at_the_start_is_left_out(tmp_path: Path) -> None:
    require_packages("torch")
    begins = time.time()
    with remote_gang(tmp_path, flow('spares=1, preflight="full", warm=False', 4), 4) as gang:
        one, two = gang.hosts[1], gang.hosts[2]
        one.run(["ip", "neigh", "replace", two.address, "lladdr", NOWHERE, "dev", "eth0"])
        said, *others = [task.ok(3 * START_S) for task in gang.start_all()]
        gang.wait_until_gone()
    pair = f"node 1 (gang1, {one.address}) and node 2 (gang2, {two.address}) do not reach each other: no answer within"
    assert said.count(pair) == 1, said
    assert "Preflight: all other 3 nodes reach each other (" in said, said
    assert "[gang] node 2 is left out; node 3 takes its place\n" in said, said
    everything = "\n".join([said, *others])
    assert world(everything, begins) == [(0, 0, 3), (1, 1, 3), (2, 3, 3)]
    assert sorted(losses(everything)) == list(range(40))
    assert "call 0 is over on node 2;" in others[1], "its task is stored like any other"
    (left_out,) = tmp_path.rglob("*gang-left-out*.json")
    assert json.loads(json.loads(left_out.read_text())["value"]).startswith(f"its preflight failed: {pair}")


def test_too_many_nodes_that_do_not_reach_another_one_end_the_gang(tmp_path: Path) -> None:
    with remote_gang(tmp_path, flow('spares=1, preflight="full"', 4), 4) as gang:
        for host, other in ((1, 2), (1, 3), (2, 3)):
            nowhere = [gang.hosts[other].address, "lladdr", NOWHERE, "dev", "eth0"]
            gang.hosts[host].run(["ip", "neigh", "replace", *nowhere])
        for task in gang.start_all():
            output = task.fails(3 * START_S)
            assert output.count("do not reach each other") == 3 and "is left out" not in output, output


ON_BATCH = {"METAFLOW_RUNTIME_ENVIRONMENT": "aws-batch"}
"""Where the end of one task is not that of the job."""


def reasons_left_out(folder: Path) -> set[str]:
    records = [json.loads(path.read_text()) for path in folder.rglob("*gang-left-out*.json")]
    return {str(json.loads(record["value"])) for record in records}


def reason_left_out(folder: Path) -> str:
    (why,) = reasons_left_out(folder)
    return why


def wait_for(there: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("lacks", ["torch", "this version"])
def test_a_node_that_cannot_take_part_is_left_out(tmp_path: Path, lacks: str) -> None:
    require_packages("torch")
    begins = time.time()
    with remote_gang(tmp_path, flow("spares=1, warm=False", 3), 3) as gang:
        if lacks == "torch":
            env, why = without(tmp_path / "lacks", "torch"), "PyTorch"
        else:
            env, why = {}, "has metaflow-gang 9.9, and node 0 has "
            other = tmp_path / "version.py"
            other.write_text('VERSION = "9.9"\n')
            gang.hosts[1].run(["mount", "--bind", str(other), str(Path(str(core.__file__)).parent / "version.py")])
        tasks = [gang.start(0, **ON_BATCH), gang.start(1, **ON_BATCH, **env), gang.start(2, **ON_BATCH)]
        unfit = tasks[1].fails(2 * START_S)
        said, spare = tasks[0].ok(2 * START_S), tasks[2].ok(START_S)
        gang.wait_until_gone()
    assert why in unfit and "up 1 " not in unfit, unfit
    assert said.count("[gang] node 1 (gang1) cannot take part: ") == 1, said
    assert "[gang] node 1 is left out; node 2 takes its place\n" in said, said
    assert "restart 1" not in said, said
    assert world(said + spare, begins) == [(0, 0, 2), (1, 2, 2)]
    assert sorted(losses(said + spare)) == list(range(40))
    assert re.match(f"its preflight failed: .*{why}", reason_left_out(tmp_path))


JOIN_S = 10.0


def test_the_gang_begins_without_nodes_that_do_not_join(tmp_path: Path) -> None:
    """One cannot load its flow file; one is not there when the time is over, and comes once the ranks run."""
    require_packages("torch")
    begins = time.time()
    hold = tmp_path / "hold-5"
    hold.touch()
    attributes = f"spares=2, warm=False, all_nodes_started_timeout={JOIN_S:g}"
    with remote_gang(tmp_path, flow(attributes, 4), 4) as gang:
        last, lacks = gang.start(3, **ON_BATCH), gang.start(1, **ON_BATCH, LACKS="1")
        wait_for(lambda: list((tmp_path / "tmp" / last.host.name).glob("metaflow-gang-*/gangs/*/owned")), START_S)
        lacking = lacks.fails(START_S)
        first = gang.start(0, **ON_BATCH)  # whose time begins now
        first.wait_for("step 5 of rank 0 ", 2 * START_S)
        late = gang.start(2, **ON_BATCH).fails(START_S)
        hold.unlink()
        said, spare = first.ok(2 * START_S), last.ok(START_S)
        gang.wait_until_gone()
    assert "accepts no more nodes: this node came too late or was restarted" in late, late
    assert "No module named 'a_module_that_is_not_there'" in lacking, lacking
    reasons = {
        1: "its flow file could not be loaded: ModuleNotFoundError: No module named 'a_module_that_is_not_there'",
        2: f"not within {JOIN_S:g} s (all_nodes_started_timeout)",
    }
    for node, why in reasons.items():
        assert said.count(f"[gang] node {node} did not join: {why}.\n") == 1, said
    assert "[gang] nodes 1 and 2 are left out; node 3 takes its place\n" in said, said
    assert "restart 1" not in said, said
    assert world(said + spare, begins) == [(0, 0, 2), (1, 3, 2)]
    assert sorted(losses(said + spare)) == list(range(40))
    assert reasons_left_out(tmp_path) == {f"it did not join: {why}" for why in reasons.values()}


@pytest.mark.parametrize("backend", ["aws-batch", "kubernetes"])
def test_what_the_gang_cannot_do_without_ends_it_as_without_spares(tmp_path: Path, backend: str) -> None:
    """Two of three nodes, or, where a cluster ends the job with a task, one."""
    require_packages("torch")
    lack = without(tmp_path / "lacks", "torch")
    with remote_gang(tmp_path, flow("spares=1", 3), 3) as gang:
        env = {"METAFLOW_RUNTIME_ENVIRONMENT": backend}
        last = lack if backend == "aws-batch" else {}
        tasks = [gang.start(0, **env), gang.start(1, **env, **lack), gang.start(2, **env, **last)]
        said = [task.fails(2 * START_S) for task in tasks]
        gang.wait_until_gone()
    assert "The first failure was on node " in said[0] and "PyTorch" in said[0], said[0]
    assert all("up " not in output and "is left out" not in output for output in said), said
    if last:
        assert re.search(r"Before, node [12] \(gang[12]\) could not take part: .*PyTorch", said[0]), said[0]


def test_a_node_with_other_software_is_left_out_and_its_task_is_stored(tmp_path: Path) -> None:
    require_packages("torch")
    begins = time.time()
    with remote_gang(tmp_path, flow('spares=2, preflight="full", warm=False', 4), 4) as gang:
        one, three = gang.hosts[1], gang.hosts[3]
        one.run(["ip", "neigh", "replace", three.address, "lladdr", NOWHERE, "dev", "eth0"])
        other = distribution(tmp_path / "other", "torch", "1.2.3")
        tasks = [gang.start(0), gang.start(1, PYTHONPATH=other), gang.start(2), gang.start(3)]
        said, *others = [task.ok(3 * START_S) for task in tasks]
        gang.wait_until_gone()
    assert re.search(r"^\[gang\] {3}torch\s+\S+\s+1\.2\.3$", said, re.MULTILINE), said
    assert "[gang] node 1 is left out; node 2 takes its place\n" in said, said
    assert "Preflight: all other 3 nodes reach each other (" in said, "nothing is asked of the network of node 1"
    assert world("\n".join([said, *others]), begins) == [(0, 0, 2), (1, 2, 2)]
    assert "call 0 is over on node 1;" in others[0], "its task is stored like any other"
    assert re.fullmatch(r"its preflight failed: it has torch 1\.2\.3, and node 0 has \d\S+", reason_left_out(tmp_path))

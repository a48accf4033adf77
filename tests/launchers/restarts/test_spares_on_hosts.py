"""@torchrun with a spare node on hosts with a network between them: a host that is cut off or killed is replaced."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from support.frameworks.spares import flow, gone_on_after, losses, world
from support.remote import LOST_HOST_S, START_S, remote_gang
from support.requirements import require_packages

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

"""@torchrun with restarts on hosts with a network between them: the right rank is told; a lost host ends the gang."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from restart_flow import RANKS, acts, flow, lines_about_restarts
from support.remote import LOST_HOST_S, START_S, all_fail, remote_gang
from support.requirements import require_packages

pytestmark = pytest.mark.slow

FLOW = flow("torchrun", "nproc_per_node=2, restarts=2", "torch").replace("num_parallel=2", "num_parallel=3")


def test_ranks_that_work_together_are_started_again_on_all_hosts(tmp_path: Path) -> None:
    require_packages("torch")
    (tmp_path / "ranks.py").write_text(RANKS)
    what = acts(try0={5: "meet progress 0.5 kill", "*": "meet reduce"}, try1={"*": "meet progress"})
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all(**what)
        for task in tasks:
            task.ok(2 * START_S)
        (line,) = lines_about_restarts(tasks[0].output, 1)
        assert re.match(r"restart 1 of 2: rank 5 on node 2 \(gang2\) was killed by SIGKILL", line), line
        lines_about_restarts(tasks[1].output, 0)  # node 0's log alone tells it
        for node, task in enumerate(tasks):
            assert sorted(re.findall(r"rank (\d) in try 1", task.output)) == [str(2 * node), str(2 * node + 1)]
        gang.wait_until_gone()


def test_a_host_that_is_lost_after_a_restart_ends_the_gang(tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    what = acts(try0={1: "progress raise", "*": "stay"}, try1={"*": "stay"})
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all(**what)
        for task in tasks:
            task.wait_for(re.compile(r"rank \d in try 1 "))
        since = time.monotonic()
        gang.kill_host(2)
        said = all_fail(tasks[:2], since, LOST_HOST_S + 15.0, "a host is lost after a restart")
        for output in said:
            assert re.search(r"first failure was on node 2", output), output
            assert "restart 1 of 2: rank 1 on node 0" in output, output
        gang.wait_until_gone()

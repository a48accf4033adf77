"""@torchrun with restarts: what is started again, what is not, and what is told of it. Ranks are plain scripts."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from restart_flow import RANKS, acts, flow, lines_about_restarts
from support.faults import kill_process, stopped
from support.flows import FlowRun, FlowRunner, flow_environment
from support.processes import read_process, send_signal

LIMIT_S = 60.0

FILES = {"ranks.py": RANKS}

both = pytest.mark.parametrize("options", [None, {"max_restarts": 0, "monitor_interval": 0.1}])
"""The gang starts the ranks itself, or torchrun's agent does, which takes some seconds to import torch."""


def started(flow_run: FlowRunner, attributes: str, env: dict[str, str], *arguments: str) -> FlowRun:
    text = flow("torchrun", f"nproc_per_node=2, {attributes}", "torch")
    return flow_run(text, *arguments, env=env, files=FILES)


def of_metadata(run: FlowRun, name: str) -> Any:
    return json.loads(run.node_tasks("work")[0].metadata_dict[name])


def why(run: FlowRun) -> str:
    """What ``metaflow-gang why`` says of the gang."""
    words = [str(Path(sys.executable).with_name("metaflow-gang")), "why", run.node_tasks("work")[0].pathspec]
    told = subprocess.run(
        words, cwd=run.folder, env=flow_environment(), capture_output=True, text=True, timeout=LIMIT_S
    )
    assert told.returncode == 0, told
    return told.stdout


def test_killed_ranks_are_started_again_and_told_once(flow_run: FlowRunner) -> None:
    what = acts(try0={3: "with4 progress 0.2 kill", "*": "stay"}, try1={0: "with4 0.2 kill", "*": "stay"})
    run = started(flow_run, "restarts=3", what, "--how", "function").ok(LIMIT_S)
    killed = "was killed by SIGKILL"
    first, second = lines_about_restarts(run.output, 2)
    assert first.startswith(f"restart 1 of 3: rank 3 on node 1 {killed}")
    assert second.startswith(f"restart 2 of 3: rank 0 on node 0 {killed}")
    assert run.artifact("join", "returned") == [f"{rank} of try 2" for rank in range(4)], "of the last try alone"
    for number in range(3):
        found = re.findall(rf"rank (\d) in try {number} \({number}, 3\) is \d+;", run.output)
        assert sorted(found) == list("0123"), run.dump()
    assert [entry["line"] for entry in of_metadata(run, "gang-restarts")] == [first, second]
    assert "gang-failure" not in run.node_tasks("work")[0].metadata_dict
    told = why(run)
    assert "the gang of 2 nodes has succeeded." in told
    assert re.findall(r"  at [-\d]+ [:\d]+ UTC: (.*)", told) == [first, second], told


@pytest.mark.slow
@both
def test_a_rank_that_raises_after_progress_is_started_again(
    flow_run: FlowRunner, options: dict[str, Any] | None
) -> None:
    """In the midst of a collective, whose other ranks complain about it, too."""
    what = acts(try0={2: "meet progress raise", "*": "meet reduce"}, try1={"*": "meet progress"})
    more = {"OPTIONS": json.dumps(options)} if options else {}
    run = started(flow_run, "restarts=1", {**what, **more}).ok(2 * LIMIT_S)
    (line,) = lines_about_restarts(run.output, 1)
    assert line.startswith("restart 1 of 1: rank 2 on node 1 "), line
    assert "(RuntimeError: deliberate in rank 2 in try 0)" in line
    # The agent counts its own restarts alone; the sum is what a script sees.
    found = re.findall(r"rank (\d) in try 1 \(1, \d\) is", run.output)
    assert sorted(found) == list("0123"), run.dump()


@pytest.mark.parametrize(
    ("act", "why", "told"),
    [
        ("import", "a ModuleNotFoundError comes again in every try", "No module named 'nowhere_to_be_found'"),
        ("progress import", "a ModuleNotFoundError comes again in every try", "No module named 'nowhere_to_be_found'"),
        ("usage", "exit code 2, before any sign of progress, is that of a wrong argument", "called sys.exit(2)"),
        ("raise", "RuntimeError, raised before any sign of progress", "RuntimeError: deliberate in rank 3 in try 0"),
    ],
)
def test_what_another_try_cannot_mend_ends_at_once(flow_run: FlowRunner, act: str, why: str, told: str) -> None:
    run = started(flow_run, "restarts=3", acts(try0={3: act, "*": "stay"}))
    output = run.fails(LIMIT_S)
    lines_about_restarts(run.output, 0)
    assert not re.search("in try 1", output)
    for node in range(2):
        log = run.node_log("work", node, "stderr")
        assert told in log, run.dump()
        assert f"The ranks were not started again: {why}" in log, run.dump()
    assert re.search(r"first failure was on node 1.*: rank 3 ", run.node_log("work", 0, "stderr"))
    failure = of_metadata(run, "gang-failure")
    assert (failure["node"], failure["rank"]) == (1, 3)


def test_the_last_failure_tells_all_restarts(flow_run: FlowRunner) -> None:
    what = acts(
        try0={1: "progress raise", "*": "stay"}, try1={2: "kill", "*": "stay"}, try2={3: "progress raise", "*": "stay"}
    )
    run = started(flow_run, "restarts=2", what)
    run.fails(LIMIT_S)
    for node in range(2):
        log = run.node_log("work", node, "stderr")
        assert "RuntimeError: deliberate in rank 3 in try 2" in log, "the last failure"
        assert (
            "restart 1 of 2: rank 1 on node 0 exited with code 1 (RuntimeError: deliberate in rank 1 in try 0)" in log
        )
        assert "  | RuntimeError: deliberate in rank 1 in try 0" in log, "the first one in full"
        assert "restart 2 of 2: rank 2 on node 1 was killed by SIGKILL" in log
        assert "The ranks were started again twice, which is all that restarts allows." in log
    assert "@torchrun:" in run.node_log("work", 1, "stderr"), "node 1 raises its own exception"
    assert of_metadata(run, "gang-failure")["rank"] == 3
    assert [entry["again"] for entry in of_metadata(run, "gang-restarts")] == [True, True, False]
    told = why(run)
    assert re.findall(r"  at .* UTC: (restart \d of 2): ", told) == ["restart 1 of 2", "restart 2 of 2"], told
    assert "\n  The ranks were started again twice, which is all that restarts allows.\n" in told
    assert re.findall(r"\n    \| (.*)", told)[-1] == "RuntimeError: deliberate in rank 3 in try 2", told


def test_two_ranks_killed_at_once_are_one_restart(flow_run: FlowRunner) -> None:
    run = started(flow_run, "restarts=1", acts(try0={"*": "progress stay"}))
    run.wait_for(re.compile(r"rank \d in try 0 .* is \d+;"), LIMIT_S, count=4)
    ranks = {int(found[1]): int(found[2]) for found in re.finditer(r"rank (\d) in try 0 .* is (\d+);", run.output)}
    assert all(send_signal(process, signal.SIGKILL) for process in [read_process(ranks[rank]) for rank in (1, 2)])
    run.ok(LIMIT_S)
    (line,) = lines_about_restarts(run.output, 1)
    assert re.match(r"restart 1 of 1: rank [12] on node [01] was killed by SIGKILL", line)


def test_only_restarts_within_the_window_count(flow_run: FlowRunner) -> None:
    what = acts(try0={0: "kill", "*": "stay"}, try1={0: "3.5 kill", "*": "stay"}, try2={0: "kill", "*": "stay"})
    run = started(flow_run, "restarts=1, restart_window=3", what)
    output = run.fails(LIMIT_S)
    lines_about_restarts(run.output, 2)
    assert "started again once within 3 s, which is all that restarts allows" in output


def test_the_users_own_function_decides(flow_run: FlowRunner) -> None:
    what = acts(try0={0: "raise", "*": "stay"}, try1={0: "kill", "*": "stay"})
    run = started(flow_run, "restarts=2, restart_on=again", what)
    output = run.fails(LIMIT_S)
    assert "asked about exit 1 RuntimeError;" in output
    assert "asked about signal 9 ;" in output
    lines_about_restarts(run.output, 1)
    assert "The ranks were not started again: restart_on decided so." in output


def test_a_rank_that_leaves_with_code_0_is_not_started_again_and_told_why(flow_run: FlowRunner) -> None:
    what = acts(try0={3: "progress leave"})
    output = started(flow_run, "restarts=1, restart_on=again", what, "--how", "function").fails(LIMIT_S)
    why = "as by os._exit(0). The ranks were not started again: code 0 is that of a rank that has ended well."
    assert f"returned in 1 of the 2 ranks on node 1: rank 3 ended with code 0 without returning, {why}" in output
    assert "asked about" not in output and "[gang] restart" not in output


def test_a_task_that_dies_in_a_restart_fails_the_gang(flow_run: FlowRunner) -> None:
    run = started(flow_run, "restarts=1", acts(try0={0: "kill", "*": "stay"}, try1={"*": "stay"}))
    run.wait_for("restart 1 of 1", LIMIT_S)
    kill_process(run.tasks("work")[1])
    run.fails(LIMIT_S)
    assert re.search(r"node 1 \(.*\): the node's task was killed by SIGKILL", run.node_log("work", 0, "stderr"))
    assert "restart 1 of 1: rank 0 on node 0 was killed" in run.node_log("work", 0, "stderr")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ("restarts=-1", "@torchrun(restarts=-1): restarts is a whole number, 0 or more"),
        ("restarts='many'", "@torchrun(restarts='many'): restarts is a whole number, 0 or more"),
        ("restarts=1, restart_window=-2", "restart_window is a number of seconds"),
        ("restarts=1, restart_on='always'", "restart_on is a function"),
    ],
)
def test_wrong_values_are_refused_before_the_start(flow_run: FlowRunner, attributes: str, message: str) -> None:
    output = started(flow_run, attributes, acts()).fails(LIMIT_S)
    assert message in output
    assert "body of node" not in output


def test_ranks_that_make_no_progress_are_started_again(flow_run: FlowRunner) -> None:
    run = started(flow_run, "restarts=1, stall_timeout=4", acts(try0={"*": "progress stay"})).ok(LIMIT_S)
    (line,) = lines_about_restarts(run.output, 1)
    assert re.match(r"restart 1 of 1: node \d has made no progress for 4 s \(stall_timeout\)", line), line


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_started_again(flow_run: FlowRunner) -> None:
    run = started(flow_run, "restarts=1", acts(try0={"*": "progress stay"}))
    run.wait_for(re.compile(r"rank \d in try 0 .* is \d+;"), LIMIT_S, count=4)
    found = re.search(r"rank 3 in try 0 .* is (\d+);", run.output)
    assert found is not None
    with stopped(int(found[1])):
        run.wait_for("restart 1 of 1: rank 3", LIMIT_S)
    run.ok(LIMIT_S)
    (line,) = lines_about_restarts(run.output, 1)
    assert re.match(r"restart 1 of 1: rank 3 on node 1 \(process \d+\) has been stopped \(SIGSTOP\)", line), line

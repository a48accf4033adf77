"""Restartable launches of one guard: what is known of a failure, and interpreters that wait to be the next ranks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any import of the extension
import pytest
from support.processes import wait_gone

from metaflow_extensions.gang.core.guard.children import paused
from metaflow_extensions.gang.core.guard.children.launch import Launch
from metaflow_extensions.gang.core.guard.children.supervisor import Work
from metaflow_extensions.gang.core.guard.failure_record import Failure
from metaflow_extensions.gang.core.guard.loop.event_loop import Loop
from metaflow_extensions.gang.core.guard.processes import process_table
from metaflow_extensions.gang.core.ranks.functions import RANK_MAIN

END_S = 30.0

SCRIPT = """
import os, sys, time
rank, number = os.environ["RANK"], os.environ["TRY"]
print("here", flush=True)
with open(f"{sys.argv[1]}/{rank}-{number}", "w") as file:
    file.write(f"{'this' in sys.modules} {os.getpid()} {sys.stdin.read()!r}")
if number == "0":
    while not os.path.exists(f"{sys.argv[1]}/go"):
        time.sleep(0.02)
    if rank == "1":
        os.kill(os.getpid(), 9)
    time.sleep(1000)
"""


class Guard:
    """A loop, and launches of two ranks each."""

    def __init__(self, folder: Path, warm: str) -> None:
        self.folder, self.warm = folder, warm
        self.loop = Loop()
        self.failures: list[Failure] = []
        self.done: list[Launch] = []
        self.null = os.open(os.devnull, os.O_WRONLY)
        self.work = Work(self.loop, self.null, self.null, self.failures.append, self.ends, lambda task: None)
        (folder / "rank.py").write_text(SCRIPT)

    def ends(self, key: str) -> None:
        """What the hub has every guard do."""
        self.work.cancel(key)

    def plan(self, number: int, first: int = 0, label: str = "") -> dict[str, Any]:
        ranks = [
            {
                "argv": [sys.executable, "-u", RANK_MAIN, "--script", str(self.folder / "rank.py"), str(self.folder)],
                "env": {"RANK": str(rank), "TRY": str(number)},
                "title": f"rank {rank}",
                "rank": rank,
                "label": label and f"[{label} {rank}] ",
                "error_file": str(self.folder / f"error-{number}-{rank}"),
                "records_exceptions": True,
            }
            for rank in range(first, first + 2)
        ]
        return {"key": f"try-{number}", "restartable": True, "warm": self.warm, "processes": ranks}

    def launch(self, number: int, label: str = "") -> None:
        self.work.launch("guard", 3, self.plan(number, label=label), self.ended)

    def until_all_wait(self) -> set[int]:
        """Until two interpreters have imported all; their processes."""
        end = time.monotonic() + END_S

        def look() -> None:
            if len([one for one in paused_ones(self) if one.ready < 0]) == 2:
                self.loop.stop()
            else:
                assert time.monotonic() < end, "nobody waits"
                self.loop.call_later(0.05, look)

        self.loop.call_later(0.05, look)
        self.loop.run()
        return {one.pid for one in paused_ones(self)}

    def ended(self, launch: Launch) -> None:
        self.done.append(launch)
        self.loop.stop()

    def run(self) -> Launch:
        """Until a launch has ended."""
        self.loop.call_later(END_S, self.loop.stop)
        self.loop.run()
        assert self.done, f"still running after {END_S:g} s"
        return self.done.pop()

    def said(self, rank: int, number: int) -> list[str]:
        return (self.folder / f"{rank}-{number}").read_text().split()


@pytest.fixture
def guard(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    monkeypatch.setattr(paused, "AFTER_S", 0.1)
    process_table.become_subreaper()
    guard = Guard(tmp_path, request.param)
    try:
        yield guard
    finally:
        guard.work.end_launches()
        process_table.become_subreaper(False)
        guard.loop.close()
        os.close(guard.null)


def paused_ones(guard: Guard) -> list[paused.PausedRank]:
    assert guard.work._paused is not None
    return guard.work._paused._waiting


@pytest.mark.parametrize("guard", ["no_such_module,this"], indirect=True)
def test_ranks_that_are_started_again_go_on_in_interpreters_that_have_waited(guard: Guard) -> None:
    guard.launch(0)

    def when_all_wait() -> None:
        ready = [one for one in paused_ones(guard) if one.ready < 0]
        if len(ready) == 2:
            (guard.folder / "go").touch()
        else:
            guard.loop.call_later(0.05, when_all_wait)

    guard.loop.call_later(0.05, when_all_wait)
    first = guard.run()
    waiting = {one.pid for one in paused_ones(guard)}
    assert len(waiting) == 2
    assert [failure.text.partition(" (")[0] for failure in first.evidence()[0]] == ["rank 1 was killed by SIGKILL"]
    assert [(failure.node, failure.rank) for failure in first.evidence()[0]] == [(3, 1)]
    assert not guard.failures, "the gang goes on"
    guard.launch(1)
    second = guard.run()
    assert not second.has_been_given_up
    assert [result["exit_code"] for result in second.results()] == [0, 0]
    assert {int(guard.said(rank, 1)[1]) for rank in range(2)} == waiting
    assert [guard.said(rank, 1)[0::2] for rank in range(2)] == [["True", "''"]] * 2, "imported, and no stdin"
    assert [guard.said(rank, 0)[0] for rank in range(2)] == ["False"] * 2
    assert paused_ones(guard) == [], "nobody waits any more"


@pytest.mark.parametrize("guard", [""], indirect=True)
def test_without_those_new_ones_are_started(guard: Guard) -> None:
    (guard.folder / "go").touch()
    guard.launch(0)
    assert guard.run().has_been_given_up
    guard.launch(1)
    assert [result["exit_code"] for result in guard.run().results()] == [0, 0]
    assert guard.work._paused is None


@pytest.mark.parametrize("guard", ["this"], indirect=True)
def test_those_that_wait_end_with_the_guard_s_other_work(guard: Guard) -> None:
    guard.launch(0)
    guard.loop.call_later(0.05, lambda: when_one_waits())

    def when_one_waits() -> None:
        if paused_ones(guard):
            pids.extend(one.pid for one in paused_ones(guard))
            guard.work.end_launches()
        else:
            guard.loop.call_later(0.05, when_one_waits)

    pids: list[int] = []
    guard.run()
    assert pids and not wait_gone(pids, END_S)


@pytest.mark.parametrize("guard", [""], indirect=True)
def test_a_stall_ends_the_launch_and_not_the_gang(guard: Guard) -> None:
    stall = Failure(3, "stall", "has made no progress for 60 s (stall_timeout)", 1.0, rank=0)
    assert not guard.work.ends_launch(stall), "nothing runs"
    guard.launch(0)
    guard.loop.call_later(0.2, lambda: ended.append(guard.work.ends_launch(stall)))
    ended: list[bool] = []
    launch = guard.run()
    assert ended == [True]
    assert [failure.kind for failure in launch.evidence()[0]] == ["stall"]
    assert not guard.failures


@pytest.mark.parametrize("guard", ["this"], indirect=True)
def test_a_node_without_ranks_has_interpreters_for_whichever_it_gets(
    guard: Guard, capfd: pytest.CaptureFixture[str]
) -> None:
    guard.work._out = 1
    guard.work.pause("guard", guard.plan(0, first=7, label="rank"))
    waiting = guard.until_all_wait()
    guard.launch(1, label="now rank")
    launch = guard.run()
    assert [result["title"] for result in launch.results()] == ["rank 0", "rank 1"]
    assert {int(guard.said(rank, 1)[1]) for rank in range(2)} == waiting
    assert paused_ones(guard) == []
    written = capfd.readouterr().out.splitlines()
    assert sorted(written) == ["[now rank 0] here", "[now rank 1] here"]


@pytest.mark.parametrize("guard", ["this"], indirect=True)
def test_a_node_that_gets_no_ranks_ends_its_interpreters(guard: Guard) -> None:
    guard.work.pause("guard", None)
    guard.work.pause("guard", guard.plan(0, first=7))
    waiting = guard.until_all_wait()
    guard.work.pause("guard", None)
    assert not wait_gone(waiting, END_S)
    assert paused_ones(guard) == []

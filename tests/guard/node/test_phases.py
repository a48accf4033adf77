"""The phases of a node: each is noted once, sent to the hub in few messages, and shown as one line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import metaflow  # noqa: F401 - before any import of the extension
import pytest

from metaflow_extensions.gang.core.guard.coordinator.gang_phases import GangPhases
from metaflow_extensions.gang.core.guard.coordinator.messages import Checker
from metaflow_extensions.gang.core.guard.loop.framing import Nonsense
from metaflow_extensions.gang.core.guard.phases import NAMES, NodePhases, closing_line


class Hub:
    """A link to a hub: ``sent`` has what has come."""

    def __init__(self) -> None:
        self.link = self
        self.connected = False
        self.sent: list[dict[str, Any]] = []

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        self.sent.append(header)

    def phases(self) -> dict[str, Any]:
        return {}

    def restarts(self) -> list[dict[str, Any]]:
        return []


class Timers:
    """What is to be called later, called by hand."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.waiting.append(callback)

    def fire(self) -> None:
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback()


def test_phases_that_follow_each_other_go_in_one_message_and_the_last_ones_at_once() -> None:
    hub, timers, said = Hub(), Timers(), list[str]()
    phases = NodePhases(timers, hub, said.append)
    phases.task_started(1, os.getpid())
    phases.note("met")
    timers.fire()
    assert not hub.sent, "there is no hub yet"
    hub.connected = True
    for event in ("all_joined", "all_joined"):
        phases.event(event)
    phases.note("formed")
    phases.note("ranks")
    assert len(timers.waiting) == 1
    timers.fire()
    assert [list(message["times"]) for message in hub.sent] == [["started", "met", "joined", "formed", "ranks"]]
    for event in ("body_done", "finished", "left"):
        phases.event(event)
    assert [list(message["times"])[5:] for message in hub.sent[1:]] == [["done"], ["done", "stored"]]
    assert not timers.waiting and not said, "the line is node 0's"
    times = list(phases.times.values())
    assert times == sorted(times)
    checker = Checker(2)
    for message in hub.sent:
        checker.check(message, b"")


def test_a_task_s_start_is_that_of_its_process() -> None:
    begun = time.time()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as task:
        time.sleep(0.3)  # its age is what is measured
        phases = NodePhases(Timers(), Hub(), print)
        phases.task_started(0, task.pid)
        phases.note("met")
        assert task.stdin is not None
        task.stdin.close()
    assert begun - 0.05 <= phases.since <= begun + 0.3
    assert phases.times["started"] == 0.0 and 0.25 <= phases.times["met"] <= time.time() - begun + 0.05


@pytest.mark.parametrize(
    ("times", "line"),
    [
        ((0, 0.1, 0.3, 0.3, 1.4, 2, 513.4, None, 513.8), "joined 0.3 s, ranks 1.1 s, body 512 s, stored 0.4 s"),
        ((0, 0.1, 0.3, 2.3, None, None, 12, None, 12.04), "joined 0.3 s, launcher 2.0 s, body 9.7 s, stored 0.0 s"),
        (
            (0, 0.1, 0.3, 0.3, 1.3, None, 6.5, 6.3, 7),
            "joined 0.3 s, ranks 1.0 s, body failed after 5.0 s, stored 0.7 s",
        ),
        ((0, 0.1, None, None, None, None, 9, 8.5, 9.5), "failed 8.5 s after the start, before all nodes had joined"),
    ],
)
def test_the_line_at_the_end(times: tuple[float | None, ...], line: str) -> None:
    assert closing_line({name: at for name, at in zip(NAMES, times, strict=True) if at is not None}) == line


def test_node_0_has_the_first_and_the_last_of_each_phase_on_its_own_clock() -> None:
    gang = GangPhases()
    gang.take(0, {"since": 100.0, "times": {"started": 0.0, "joined": 2.0}}, 0.0)
    gang.take(1, {"since": 91.0, "times": {"started": 0.0}}, 10.0)
    gang.take(1, {"since": 91.0, "times": {"started": 0.0, "joined": 0.5}}, 10.0)
    assert gang.summary() == {
        "started": {"nodes": 2, "first": 100.0, "first_node": 0, "last": 101.0, "last_node": 1},
        "joined": {"nodes": 2, "first": 101.5, "first_node": 1, "last": 102.0, "last_node": 0},
    }


@pytest.mark.parametrize("times", [None, {"other": 1.0}, {"met": "soon"}, {"met": float("nan")}, {"met": -1.0}])
def test_phases_that_are_none_are_refused(times: Any) -> None:
    with pytest.raises(Nonsense):
        Checker(2).check({"op": "phases", "since": 1.0, "times": times}, b"")

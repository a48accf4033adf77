"""What commands of other nodes have left on a node is ended before ranks are started again, all of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any import of the extension
import pytest

from metaflow_extensions.gang.core.guard.children.supervisor import Work
from metaflow_extensions.gang.core.guard.loop.event_loop import Loop
from metaflow_extensions.gang.core.guard.processes import process_table
from metaflow_extensions.gang.core.guard.remote_command.left_commands import LeftCommands

END_S = 30.0

SSHD = "import time; time.sleep(1000)"

RANK = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").close()
time.sleep(1000)
"""

DAEMON = """
import subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]], env={})
print(rank.pid, flush=True)
time.sleep(1000)
"""


@pytest.fixture
def subreaper() -> Iterator[None]:
    """As in a guard, orphans become children of this process."""
    assert process_table.become_subreaper()
    yield
    process_table.become_subreaper(False)


def until(loop: Loop, done: list[Any]) -> None:
    end = time.monotonic() + END_S

    def look() -> None:
        if done:
            loop.stop()
        else:
            assert time.monotonic() < end, "it does not end"
            loop.call_later(0.02, look)

    look()
    loop.run()


@pytest.mark.skipif(not process_table.sees_all(), reason="sessions of the gang's sshd are found in /proc")
def test_a_rank_without_the_sessions_environment_is_ended_though_its_daemon_has_gone_first(
    tmp_path: Path, subreaper: None
) -> None:
    loop = Loop()
    null = os.open(os.devnull, os.O_WRONLY)
    work = Work(loop, null, null, lambda failure: None, lambda key: None, lambda task: None)
    said: list[str] = []
    work.say = said.append
    ended: list[Any] = []
    sshd = {"argv": [sys.executable, "-c", SSHD], "env": dict(os.environ), "title": "sshd"}
    launch = work.launch("guard", 1, {"check": False, "lasting": True, "processes": [sshd]}, ended.append)
    mark = {process_table.LAUNCH_MARKER: process_table.SESSION}
    ready = tmp_path / "ready"
    command = [sys.executable, "-c", DAEMON, str(ready), RANK]
    daemon = subprocess.Popen(command, env={**os.environ, **mark}, stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    rank = int(daemon.stdout.readline())
    deadline = time.monotonic() + END_S
    while not ready.exists():  # the rank takes no SIGTERM from then on
        assert time.monotonic() < deadline
        time.sleep(0.01)
    over: list[bool] = []
    LeftCommands(loop, work).end(lambda: over.append(True))
    until(loop, over)
    for pid in (daemon.pid, rank):
        entry = process_table.lookup(pid)
        assert entry is None or entry.state in "ZX", process_table.described(pid)
    assert not said and launch.children[0].alive, "what serves the next commands goes on"
    launch.end()
    until(loop, ended)
    daemon.stdout.close()
    daemon.wait(END_S)
    loop.close()
    os.close(null)

"""What is told of a launch that has failed already is no failure of the gang."""

from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace
from typing import Any

import metaflow  # noqa: F401 - before any import of the extension

from metaflow_extensions.gang.core.guard.children.launch import Launch
from metaflow_extensions.gang.core.guard.children.supervisor import Work
from metaflow_extensions.gang.core.guard.failure_record import Failure
from metaflow_extensions.gang.core.guard.host.owned_files import Owned
from metaflow_extensions.gang.core.guard.hub_link.hub_access import HubAccess
from metaflow_extensions.gang.core.guard.loop.event_loop import Loop
from metaflow_extensions.gang.core.guard.node.identity import NodeIdentity
from metaflow_extensions.gang.core.guard.node.requests.restart_requests import RestartRequests
from metaflow_extensions.gang.core.guard.node.state import NodeState

END_S = 30.0


def test_ranks_of_several_nodes_that_are_stopped_at_once_end_their_launch_and_not_the_gang() -> None:
    loop, ends, failures = Loop(), list[str](), list[Failure]()
    null = os.open(os.devnull, os.O_WRONLY)
    work = Work(loop, null, null, failures.append, ends.append, lambda task: None)
    rest: Any = SimpleNamespace(fail=failures.append, owned=Owned())  # where a failure of the gang, or a file, is noted
    requests = RestartRequests(
        loop, NodeIdentity(0), NodeState(), HubAccess(), rest, work, rest, rest, rest, lambda text: None
    )

    def told(node: int) -> None:
        failure = Failure(node, "stopped", "rank 3 (process 7) has been stopped (SIGSTOP) for 10 s", time.time())
        requests.from_hub({"op": "ranks-failed", "failure": failure.to_json()})

    def launch(number: int) -> list[Launch]:
        sleeper = {"argv": [sys.executable, "-c", "import time; time.sleep(1000)"], "env": {}, "title": "mpirun"}
        plan = {"key": f"mpi-{number}", "restartable": True, "processes": [sleeper]}
        given_up, done = requests.begins(plan), list[Launch]()

        def ended(launch: Launch) -> None:
            assert [failure["node"] for failure in given_up(launch)["failures"]] == [1]
            done.append(launch)

        work.launch("guard", 0, plan, ended)
        return done

    def until(done: list[Launch]) -> None:
        end = time.monotonic() + END_S

        def look() -> None:
            assert time.monotonic() < end, "the launch does not end"
            if done:
                loop.stop()
            else:
                loop.call_later(0.02, look)

        look()
        loop.run()

    for number in range(2):
        done = launch(number)
        told(1)
        told(2)  # while the launch ends, ...
        until(done)
        told(2)  # ... and when it is gone
        assert ends == [f"mpi-{one}" for one in range(number + 1)] and not failures
    requests.begins({"key": "mpi-2", "restartable": True})
    told(2)  # of a process that no launch here has started
    assert [failure.node for failure in failures] == [2]
    loop.close()
    os.close(null)

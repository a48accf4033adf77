"""``current.gang.stacks()`` and the signal to a guard: where the bodies of all nodes stand, while the gang goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def wait_for_the_others(gang: Any) -> None:
    gang.barrier()


def work(gang: Any, order: dict[str, Any]) -> dict[str, Any]:
    from metaflow_extensions.gang.core.guard.stalls import stack_file

    stack_file.register(gang.folder, stack_file.BODY)
    gang.barrier()
    found: list[dict[str, Any]] = []
    if gang.node_index == 1:
        time.sleep(1.0)  # the other body is in its barrier by then, most likely, and the test does not need it to be
        stacks = gang.stacks()
        found = [{"place": group.place, "nodes": group.nodes, "others": group.others} for group in stacks]
        assert str(stacks) == stacks.text and len(stacks) == len(found)
        os.kill(gang._link.guard_pid, signal.SIGUSR1)
    wait_for_the_others(gang)
    return {"found": found}


def test_any_node_gets_the_stacks_of_all_and_a_signal_to_its_guard_prints_them(capfd: Any) -> None:
    from support.guard.many_nodes import ManyNodes

    with ManyNodes(2, Path(__file__)) as nodes:
        replies = nodes.call()
        end, printed = time.monotonic() + 30, ""
        while "Where all ranks stand:\n" not in printed:
            assert time.monotonic() < end
            time.sleep(0.1)
            printed += capfd.readouterr().err
    found = replies[1]["found"]
    assert sorted(node for group in found for node in group["nodes"]) == [0, 1]
    assert sorted(name for group in found for name in group["others"]) == ["the body of node 0", "the body of node 1"]
    own = next(group for group in found if 1 in group["nodes"])
    assert own["place"].startswith("stacks at test_stacks_on_demand.py:")
    assert replies[0]["found"] == []


RUN = """
import signal
import subprocess
import sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what a script starts with "&"
import metaflow
from metaflow_extensions.gang.core.step.run_interrupt import pass_on_interrupts
pass_on_interrupts()
print("ready", flush=True)
input()
print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
"""


def test_a_run_that_ignores_interrupts_takes_the_signal_as_well() -> None:
    with subprocess.Popen([sys.executable, "-c", RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        run.send_signal(signal.SIGUSR1)
        assert run.communicate("\n", timeout=60)[0] == "True\n"
        assert run.returncode == 0

"""What Metaflow's spot monitor makes of a notice: a file that guards look for, and a signal that no task gets."""

from __future__ import annotations

import contextlib
import os
import sys

import metaflow
from support.hosts import Hosts

from .imds import InstanceMetadata

LIMIT_S = 60.0

TASK = """
import os, signal, sys
from metaflow.sidecar import Sidecar

signal.signal(signal.SIGTERM, lambda *_: print("the task was told"))
Sidecar("spot_termination_monitor").start()
_, status = os.wait()
print("the sidecar ended with", os.waitstatus_to_exitcode(status))
print("the notice says", open("/tmp/spot_termination_notice").read())
"""


def test_the_monitor_writes_the_notice_down_and_tells_its_own_sidecar_alone() -> None:
    installed = os.path.dirname(os.path.dirname(metaflow.__file__))
    with (
        Hosts(1, private_tmp=True, keep=[installed] if installed.startswith("/tmp/") else []) as hosts,
        contextlib.closing(InstanceMetadata(hosts[0])) as service,
    ):
        ends = service.take_away()
        env = {**os.environ, "MF_PATHSPEC": "Flow/1/step/2", "MF_ATTEMPT": "0", "METAFLOW_FLOW_FILENAME": "flow.py"}
        done = hosts[0].run([sys.executable, "-c", TASK], env=env, cwd="/", timeout=LIMIT_S)
    assert done.stdout.splitlines()[-2:] == ["the sidecar ended with -15", f"the notice says {ends}"], done.stdout
    assert "the task was told" not in done.stdout

"""When a job is cancelled of which some tasks have ended: by the files that those leave."""

from __future__ import annotations

import math
from pathlib import Path

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest

from metaflow_extensions.gang.backends.slurm.client.commands import Commands
from metaflow_extensions.gang.backends.slurm.client.machine import Machine
from metaflow_extensions.gang.backends.slurm.follow import GRACE_S, SILENT_S, Follower


@pytest.mark.parametrize(
    ("ended", "tolerates", "after_s"),
    [
        ({}, False, math.inf),
        ({0: 0}, False, math.inf),
        ({0: 1}, False, GRACE_S),
        ({0: 1, 2: 1}, False, GRACE_S),
        ({1: 1}, False, math.inf),  # node 0 may do without it, and otherwise tells the failure itself
        ({1: 0, 2: 0}, False, math.inf),  # their bodies are over before node 0's
        ({1: 1, 2: 0}, False, math.inf),
        ({1: 1, 2: 143}, False, SILENT_S),  # all of node 0's task is gone, and nothing tells so
        ({1: 1, 2: 143}, True, math.inf),
    ],
)
def test_when_a_job_is_given_up(tmp_path: Path, ended: dict[int, int], tolerates: bool, after_s: float) -> None:
    follower = Follower(Machine(), Commands(Machine()), "1", str(tmp_path), 3, lambda text, stream: None, tolerates)
    for node, status in ended.items():
        (tmp_path / f"exit-{node}").write_text(f"{status}\n")
    assert follower._give_up_at({f"exit-{node}" for node in ended}, 100.0) == 100.0 + after_s

"""Real ranks: what they see under us and under torchrun's agent."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.requirements import require_packages

from metaflow_extensions.gang.core.guard.host.ports import lease_port
from metaflow_extensions.gang.launchers.torchrun.options import read_options
from metaflow_extensions.gang.launchers.torchrun.plan import Job, plan

pytestmark = pytest.mark.slow

require_packages("torch")

DEADLINE_S = 120

SEES = """
import json, os, sys
path = os.path.join(sys.argv[1], os.environ["RANK"] + ".json")
with open(path, "w") as file:
    json.dump({"env": dict(os.environ), "argv": sys.argv, "cwd": os.getcwd(), "flags": sys.flags.no_user_site}, file)
"""

# May differ: where errors are written, and who holds the store. The rest of torch's contract must not.
TORCHS = {"TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_USE_AGENT_STORE"}
# Beside the agent a wrapper of ours records how each rank ends.
OURS = {"METAFLOW_GANG_RECORD", "METAFLOW_GANG_NUMBERED"}


@pytest.fixture
def port() -> Iterator[int]:
    lease = lease_port("127.0.0.1")
    yield lease.port
    lease.release()


def seen_under(launcher: str, port: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What each rank of 2 nodes, one with two ranks and one with one, saw."""
    script, output = folder / "sees.py", folder / launcher
    script.write_text(SEES)
    output.mkdir()
    environ = {**os.environ, "RANK": "stale", "OMP_NUM_THREADS": "1"}
    plans = [
        plan(
            Job(
                entrypoint=str(script),
                arguments=(str(output), "a b", "$x", "--flag=é"),
                options=read_options(None),
                nprocs=(2, 1),
                node_index=node,
                main_address="127.0.0.1",
                port=port,
                port_is_ours=True,
                launcher=launcher,
                environ=environ,
                folder=str(folder),
                key=launcher,
            )
        )
        for node in range(2)
    ]
    children = [
        subprocess.Popen(process.argv, env=dict(process.env), cwd=folder)
        for made in plans
        for process in made.processes
    ]
    try:
        assert [child.wait(DEADLINE_S) for child in children] == [0] * len(children)
    finally:
        for child in children:
            child.kill()
            child.wait()
    return {path.stem: json.loads(path.read_text()) for path in sorted(output.iterdir())}


def test_ranks_see_the_same_under_us_and_under_the_agent(port: int, tmp_path: Path) -> None:
    ours, agents = seen_under("direct", port, tmp_path), seen_under("torchrun", port, tmp_path)
    assert list(ours) == list(agents) == ["0", "1", "2"]
    for rank in ours:
        mine, its = ours[rank], agents[rank]
        assert {**mine, "env": None, "argv": mine["argv"][2:]} == {**its, "env": None, "argv": its["argv"][2:]}
        names = set(mine["env"]) | set(its["env"])
        different = {name for name in names if mine["env"].get(name) != its["env"].get(name)}
        assert different == TORCHS | OURS
        assert (mine["env"]["TORCHELASTIC_USE_AGENT_STORE"], its["env"]["TORCHELASTIC_USE_AGENT_STORE"]) == (
            "False",
            "True",
        )

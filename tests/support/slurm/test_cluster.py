"""The Slurm of the tests is a real one: it comes up, runs jobs on all its nodes, and leaves nothing."""

from __future__ import annotations

import re
import time
from pathlib import Path

import metaflow  # noqa: F401 - before any of its extensions
import pytest

from metaflow_extensions.gang.backends.slurm.states import parse_scontrol
from support.slurm import cluster as module
from support.slurm.cluster import HIGH, Slurm

pytestmark = pytest.mark.slow


def test_jobs_run_on_all_nodes_and_nothing_is_left() -> None:
    with Slurm(3) as slurm:
        print(f"all nodes were idle after {slurm.ready_s:.1f} s")
        assert slurm.states() == {"gang1": "idle", "gang2": "idle", "gang3": "idle"}
        assert sorted(slurm.run("srun", "-N3", "hostname").split()) == ["gang1", "gang2", "gang3"]
        # A job's login shell has a home folder of its own, not that of this machine's account.
        login = slurm.run("sbatch", "--parsable", "--export=NONE", "--output=home.out", "--wrap", "echo $HOME").strip()
        slurm.wait_job(login, "COMPLETED")
        assert (slurm.folder / "home.out").read_text() == f"{slurm.folder}/home\n"
        # A preempted job ends, its processes with it; the controller goes on from its state after a restart.
        low = slurm.run("sbatch", "--parsable", "-N3", "--wrap", "srun sleep 1000").strip()
        slurm.wait_job(low, "RUNNING")
        slurm.controller.end()
        slurm.start_controller()
        assert slurm.wait_job(low, "RUNNING")["NodeList"] == "gang[1-3]"
        slurm.run("srun", "-p", HIGH, "-N3", "--exclusive", "true")
        # Its state is FAILED instead of PREEMPTED where it ends by itself within the grace time.
        assert parse_scontrol(slurm.run("scontrol", "--oneliner", "show", "job", low)).state == "PREEMPTED"
        slurm.wait_idle()
        assert slurm.left() == []
        processes = [process.pid for host in (slurm.hosts[0], slurm.hosts[1]) for process in host.processes()]
        assert processes
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)


def test_a_cluster_that_does_not_come_up_says_why() -> None:
    since = time.monotonic()
    slurm = Slurm(1, settings="NoSuchSetting=1\n")
    with pytest.raises(AssertionError, match=re.compile("slurmctld on gang0.*NoSuchSetting", re.DOTALL)):
        slurm.__enter__()
    assert not slurm.folder.exists()
    assert time.monotonic() - since < module.READY_S


def test_memory_is_limited_where_the_machine_allows() -> None:
    with Slurm(1, cgroups=True) as slurm:
        taken = ["python3", "-c", "len(bytes(range(256)) * 2_000_000)"]
        assert "Out Of Memory" in slurm.run("srun", "--mem=100M", *taken, check=False)
        slurm.run("srun", "--mem=900M", *taken)
    assert not list(Path("/sys/fs/cgroup").glob("*/slurm*"))

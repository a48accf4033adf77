"""A job of @slurm as data: what sbatch gets, what users wrote, and what Slurm's states mean. Nothing is started."""

from __future__ import annotations

from typing import Any

import metaflow  # noqa: F401 - before what extends it
import pytest

from metaflow_extensions.gang.backends.slurm.attributes import NAMES, read
from metaflow_extensions.gang.backends.slurm.client.machine import environment_of_commands
from metaflow_extensions.gang.backends.slurm.exceptions import SlurmException
from metaflow_extensions.gang.backends.slurm.job import Job
from metaflow_extensions.gang.backends.slurm.node_task import task_environment
from metaflow_extensions.gang.backends.slurm.states import end, never_starts, parse_sacct, parse_scontrol, progress


def attributes(**given: Any) -> dict[str, Any]:
    return {**dict.fromkeys(NAMES), **given}


def test_attributes_become_options_of_sbatch_and_a_timeout_the_time() -> None:
    request = read(attributes(partition="high", cpu="2.5", gpu=1, memory="4096", sbatch="--nice=5 --reservation=a"), 90)
    assert request.options == (
        *("--partition=high", "--time=3", "--cpus-per-task=3", "--gpus-per-node=1", "--mem=4096M"),
        *("--nice=5", "--reservation=a"),
    )
    assert read(attributes()).options == ()
    assert read(attributes(time="1-00:00:00"), 90).options == ("--time=1-00:00:00",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cpu": "many"}, "cpu is a number"),
        ({"time": "soon"}, "time is minutes"),
        ({"exclusive": "maybe"}, "exclusive is True or False"),
        ({"sbatch": "--nodes=3"}, "--nodes is what @slurm sets itself"),
        ({"sbatch": "--requeue"}, "@retry is what tries again"),
        ({"sbatch": "--mem=1G : --mem=2G"}, "heterogeneous job"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SlurmException) as raised:
        read(attributes(**given))
    assert said in raised.value.message


def test_a_job_does_not_get_the_environment_of_its_run_and_is_not_started_again() -> None:
    job = Job("F/1/s/2/0", "/shared/a b", "/usr/bin/python3", 3, read(attributes(signal=20)), ["true"])
    assert {"--export=NONE", "--no-requeue", "--nodes=3", "--signal=B:USR1@20"} <= set(job.submission().words())
    assert {"--mpi=none", "--kill-on-bad-exit=0", "--wait=0", "--ntasks=3"} <= set(job.srun())
    assert "cd '/shared/a b' && " in job.script()
    assert "--no-kill" not in (*job.submission().words(), *job.srun()) and "status=$(cat" not in job.script()
    kept = environment_of_commands({"PATH": "/bin", "SLURM_CONF": "c", "SLURM_JOB_ID": "1", "METAFLOW_GANG_ID": "x"})
    assert kept == {"PATH": "/bin", "SLURM_CONF": "c"}


def test_a_job_that_does_without_lost_nodes_ends_as_node_0s_task_does() -> None:
    job = Job("F/1/s/2/0", "/shared/a b", "/usr/bin/python3", 3, read(attributes()), ["true"], True)
    assert "--no-kill" in job.submission().words() and "--no-kill" in job.srun() and "--wait=0" in job.srun()
    assert "status=$(cat '/shared/a b/exit-0')" in job.script()


def test_a_task_has_the_jobs_variables_and_not_those_of_srun() -> None:
    environ = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "PMI_RANK": "1", "PYTHONPATH": "/old"}
    environ["SLURM_LAUNCH_NODE_IPADDR"] = "10.0.0.1"
    spec = {"env": {"A": "1"}, "prepended": {"PYTHONPATH": "/code"}, "address_variable": "ADDRESS"}
    found = task_environment(spec, {"env": {"NODE": "1"}}, environ)
    assert found == {"SLURM_JOB_ID": "7", "PYTHONPATH": "/code:/old", "A": "1", "NODE": "1", "ADDRESS": "10.0.0.1"}


def test_states_and_reasons_are_told_in_words() -> None:
    pending = parse_scontrol("JobId=5 JobName=a JobState=PENDING Reason=Priority Dependency=(null) ExitCode=0:0")
    assert progress(pending) == "is pending (Priority: jobs of higher priority come first)" and not never_starts(
        pending
    )
    for reason in ("PartitionTimeLimit", "QOSMaxNodePerJobLimit", "AssocMaxWallDurationPerJobLimit"):
        assert never_starts(parse_scontrol(f"JobState=PENDING Reason={reason}")).startswith(
            f"would never start ({reason})"
        )
    of_partition = "Job's_account_not_known,_so_it_can't_use_this_partition_(closed_allows_physics)"
    assert never_starts(parse_scontrol(f"JobState=PENDING Reason={of_partition}")) == (
        "would never start (Job's account not known, so it can't use this partition (closed allows physics)): "
        "see account and qos of @slurm"
    )
    for reason in ("AssocMaxJobsLimit", "QOSMaxJobsPerUserLimit", "Resources", "ReqNodeNotAvail,"):
        assert not never_starts(parse_scontrol(f"JobState=PENDING Reason={reason}")), reason
    lost = parse_scontrol("JobState=NODE_FAIL Reason=NodeDown NodeList=n[1-3] ExitCode=0:1")
    assert lost.is_over and end(lost) == "ended as NODE_FAIL (NodeDown): Slurm lost a node of it"
    unbooted = parse_scontrol("JobState=BOOT_FAIL Reason=None NodeList=n1 ExitCode=0:1")
    assert unbooted.is_over and end(unbooted) == "ended as BOOT_FAIL: a node of it could not be booted"
    assert end(parse_sacct("CANCELLED by 0|None|0:0|n1\n")) == "was cancelled"
    assert end(parse_scontrol("JobState=FAILED Reason=NonZeroExitCode ExitCode=137:0")) == (
        "ended with exit status 137 (SIGKILL)"
    )

"""Slurm through slurmrestd: a gang and its failure, a cancelled one, an array, and what it cannot do."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.machine.accounts import open_folder
from support.requirements import require_packages, require_tool

from ...flows import DIGITS, TRAIN
from ...workplace import RUN_S, result
from ..ends import at_work
from ..flows import SAVED, fans_out, works
from ..place import SlurmPlace
from ..place import slurm as slurm
from ..test_slurm_ends import WITHIN_S, kill_rank

pytestmark = pytest.mark.slow

Slurms = Callable[..., SlurmPlace]


def with_rest(place: SlurmPlace) -> SlurmPlace:
    """The place, whose user asks slurmrestd, and has none of Slurm's commands."""
    require_tool("slurmrestd", "slurmrestd")
    socket = place.slurm.folder / "rest"
    place.slurm.start_rest(f"unix:{socket}", "-a", "rest_auth/local", SLURMRESTD_SECURITY="disable_user_check")
    commands = place.folder / "without"
    commands.mkdir()
    for name in ("sbatch", "squeue", "scontrol", "scancel", "sacct"):
        (commands / name).write_text(f"#!/bin/sh\necho {name} >>{place.folder}/commands\nexit 1\n")
        (commands / name).chmod(0o755)
    place.env.update(METAFLOW_SLURM_LOGIN=f"unix://{socket}", PATH=f"{commands}:{place.env['PATH']}")
    return place


def test_a_gang_goes_on_after_a_failure(slurm: Slurms) -> None:
    gang = at_work(with_rest(slurm(3)), retries=1)
    assert gang.place.slurm.job(gang.job)["NumNodes"] == "3"
    since = time.monotonic()
    said = kill_rank(gang)
    gang.wait_over(since, "a rank is killed", WITHIN_S)
    gang.run.ok(RUN_S)
    assert result(gang.run) == ["a checkpoint"] * 3, gang.run.dump()
    assert said in gang.run.output and f"Slurm job {gang.job} runs on gang[1-3]" in gang.run.output, gang.run.dump()
    gang.place.wait_gone(since, "with the second attempt")
    assert not (gang.place.folder / "commands").exists()


def test_digits_are_learned(slurm: Slurms) -> None:
    """The same flow as on a laptop, on three nodes."""
    require_packages("torch", "sklearn")
    place = with_rest(slurm(3))
    run = place.start(DIGITS, train=TRAIN)
    run.ok(RUN_S)
    found, *_ = result(run)
    assert [(one["rank"], one["host"]) for one in found] == [(0, "gang1"), (1, "gang2"), (2, "gang3")], run.dump()
    place.wait_gone(time.monotonic(), "digits through slurmrestd")


@pytest.mark.big
def test_all_nodes_save_before_the_time_limit(slurm: Slurms) -> None:
    """slurmrestd takes no signal for the batch script, which sends it to itself. A minute is the least limit."""
    gang = at_work(with_rest(slurm(3)), options="time=1, signal=50", retries=1)
    since = time.monotonic()
    gang.run.ok(RUN_S)
    assert result(gang.run) == ["attempt 0"] * 3, gang.run.dump()
    assert "Slurm's time limit" in gang.run.output, gang.run.dump()
    assert all(node.output.count(SAVED) == 1 for node in gang.nodes), str(gang.place)
    gang.place.wait_gone(since, "time limit through slurmrestd, with the second attempt")


def test_sigkill_of_the_run_cancels_the_job(slurm: Slurms) -> None:
    gang = at_work(with_rest(slurm(3)))
    since = time.monotonic()
    gang.run.kill()
    gang.run.wait(RUN_S)
    assert gang.wait_over(since, "SIGKILL of the run", WITHIN_S) == "CANCELLED"
    gang.place.wait_gone(since, "SIGKILL of the run")


def test_the_tasks_of_a_foreach_are_an_array(slurm: Slurms) -> None:
    place = with_rest(slurm(2))
    run = place.run(fans_out(place.folder, 4, retries=1, killed=(1,)))
    run.ok(RUN_S)
    assert [one[:2] for one in result(run)] == [[0, 0], [1, 1], [2, 0], [3, 0]], run.dump()
    assert "_1] TASK" in run.output, run.dump()
    place.wait_gone(time.monotonic(), "after an array")


_ASKS = """
import json, sys, metaflow
from metaflow_extensions.gang.backends.slurm.client.interface import Submission
from metaflow_extensions.gang.backends.slurm.client.rest import Rest
slurm = Rest(sys.argv[1])
options = ("--nodes=2", "--ntasks-per-node=1", "--chdir=/", "--time=50", "--mem=100M", "--signal=B:USR1@30")
job = slurm.submit(Submission("F/1/s/2/0", "/dev/null", options, "#!/bin/sh\\nsleep 1000\\n"))
states = []
while states[-1:] != ["RUNNING"]:
    states.append(slurm.state(job).state)
found = [slurm.find("F/1/s/2/0") == job, slurm.find("F/1/s/3/0"), slurm.states()[job].nodes, slurm.state("4711").state]
slurm.cancel(job)
while states[-1] in ("RUNNING", "COMPLETING"):
    states.append(slurm.state(job).state)
print(json.dumps([job, states[-1], found]))
"""


def test_a_token_says_who_asks_at_an_url(slurm: Slurms, tmp_path: Path) -> None:
    """It is no token of root's, for whom slurmrestd takes none, and slurmrestd is not root's either."""
    require_tool("slurmrestd", "slurmrestd")
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    place = slurm(2, settings=f"AuthAltTypes=auth/jwt\nAuthAltParameters=jwt_key={key}\n")
    with open_folder() as folder:
        conf = folder / "slurm.conf"
        conf.write_text((place.slurm.folder / "slurm.conf").read_text())
        of_nobody = ("-a", "rest_auth/jwt", "-u", "nobody", "-g", "nogroup")
        place.slurm.start_rest("127.0.0.1:6820", *of_nobody, SLURM_JWT="daemon", SLURM_CONF=str(conf))
    token = place.slurm.run("scontrol", "token", "username=nobody", "lifespan=600").strip().partition("=")[2]
    argv = [sys.executable, "-c", _ASKS, "http://127.0.0.1:6820"]
    asked = place.hosts[0].run(argv, env={**place.env, "SLURM_JWT": token}, check=False, timeout=RUN_S)
    assert asked.returncode == 0, asked.stderr
    job, state, found = json.loads(asked.stdout)
    assert state == "CANCELLED" and found == [True, "", "gang[1-2]", ""], found
    assert place.slurm.job(job)["TimeLimit"] == "00:50:00" and place.slurm.job(job)["UserId"].startswith("nobody(")
    stranger = place.hosts[0].run(argv, env=place.env, check=False, timeout=RUN_S)
    assert "does not know who asks: set SLURM_JWT to a token" in stranger.stderr, stranger.stderr
    place.wait_gone(time.monotonic(), "after a cancelled job")


def test_what_slurmrestd_cannot_be_told_is_refused(slurm: Slurms) -> None:
    place = with_rest(slurm(2))
    for option, said in (
        ('sbatch="--nice=5"', "--nice of @slurm(sbatch=...) cannot be passed to the slurmrestd at unix://"),
        ('partition="nope"', "slurmrestd: Invalid partition name specified"),
    ):
        run = place.run(works(place.folder, nodes=2, options=option, retries=1))
        run.fails(RUN_S)
        assert run.output.count(said) == 1 and "Traceback" not in run.output, run.dump()
    assert not place.slurm.jobs(), place.slurm.logs()

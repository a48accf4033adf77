"""A run on a machine without Slurm, which reaches a login node over SSH."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.hosts import Host
from support.remote import RemoteTask
from support.requirements import require_packages, require_tool

from ...flows import DIGITS, TRAIN
from ...workplace import RUN_S, result
from ..place import SlurmPlace
from ..place import slurm as slurm

pytestmark = pytest.mark.slow

_SSHD = """
Port 22
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
PasswordAuthentication no
SetEnv SLURM_CONF={conf} PATH={path}
"""

_CONFIGURATION = """
IdentityFile {folder}/user
UserKnownHostsFile {folder}/known_hosts
IdentitiesOnly yes
"""


def start_sshd(host: Host, folder: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    """A server on a host, with keys of its own; its client's configuration is ``folder``/config."""
    sshd = require_tool("sshd", "openssh-server")
    for name in ("host", "user"):
        subprocess.run(
            [require_tool("ssh-keygen", "openssh-client"), "-qtecdsa", "-N", "", "-f", folder / name], check=True
        )
    key = (folder / "host.pub").read_text()
    (folder / "known_hosts").write_text(f"{host.name} {key}")
    (folder / "config").write_text(_CONFIGURATION.format(folder=folder))
    (folder / "sshd").write_text(_SSHD.format(folder=folder, conf=env["SLURM_CONF"], path=env["PATH"]))
    host.run(["mkdir", "-p", "/run/sshd"])  # the host's own /run
    server = host.popen(
        [sshd, "-D", "-e", "-f", str(folder / "sshd")], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/"
    )
    assert server.stderr is not None
    while "listening" not in (line := server.stderr.readline()):
        assert line, "sshd has ended"
    return server


def test_digits_are_learned_from_a_host_without_slurm(slurm: Callable[..., SlurmPlace], tmp_path: Path) -> None:
    require_packages("torch", "sklearn")
    place = slurm(3, others=1)
    login, outside = place.hosts[0], place.hosts[len(place.hosts) - 1]
    ssh = tmp_path / "ssh"
    ssh.mkdir()
    start_sshd(login, ssh, place.env)
    # What the user's own ~/.ssh/config would say; and Slurm's commands are not here.
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "ssh").write_text(
        f'#!/bin/sh\necho call >>{ssh}/calls\nexec {shutil.which("ssh")} -F {ssh}/config "$@"\n'
    )
    (programs / "ssh").chmod(0o755)
    for name in ("sbatch", "scontrol", "scancel", "squeue"):
        (programs / name).write_text("#!/bin/sh\necho 'There is no Slurm here.' >&2; exit 1\n")
        (programs / name).chmod(0o755)
    place.env = {**place.env, "PATH": f"{programs}:{os.environ['PATH']}", "METAFLOW_SLURM_LOGIN": f"root@{login.name}"}
    del place.env["SLURM_CONF"]
    user = tmp_path / "user"
    user.mkdir()
    trains = DIGITS.replace("    @torchrun", "    @slurm\n    @torchrun").replace(
        "step, torchrun", "slurm, step, torchrun"
    )
    for stem, text in (("flow", trains), ("train", TRAIN)):
        (user / f"{stem}.py").write_text(text)
    since = time.monotonic()
    argv = [sys.executable, str(user / "flow.py"), "run"]
    run = RemoteTask(outside, argv, place.env, user, tmp_path / "run.log")
    run.wait_for("Slurm job 1 runs on", RUN_S)
    shared = [one for one in outside.processes() if "[mux]" in " ".join(one.command)]
    assert len(shared) == 1, f"all commands share a connection: {outside.processes()}"
    run.ok(RUN_S)
    print(f"{time.monotonic() - since:.1f} s, {len((ssh / 'calls').read_text().splitlines())} commands over SSH")
    found, *_ = result(run)
    assert [(one["rank"], one["host"]) for one in found] == [(0, "gang1"), (1, "gang2"), (2, "gang3")], run.dump()
    place.wait_gone(since, "over SSH")

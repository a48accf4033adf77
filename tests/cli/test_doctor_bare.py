"""``metaflow-gang doctor`` where there is Metaflow, this package and nothing else: no framework, no MPI, no OpenSSH."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sysconfig
import time
import venv
from importlib import metadata
from pathlib import Path

import metaflow  # noqa: F401 - before any import of the extension
import pytest
from support.flows import flow_environment

LIMIT_S = 240.0

SMOKE_S = 90.0
"""The longest that the smoke test is to take."""

PROGRAMS = ("sh", "env", "uname", "ls", "cat", "ps", "id", "whoami", "hostname")
"""Of those that every Debian has, what Metaflow may start."""


def with_requirements(name: str, known: set[str]) -> set[str]:
    """The distributions that ``name`` needs, extras left out, itself and ``known`` among them."""
    known.add(name)
    for line in metadata.requires(name) or ():
        found = re.match(r"[-\w.]+", line)
        if found and ";" not in line and found[0].lower() not in known:
            with_requirements(found[0].lower(), known)
    return known


def bare_python(folder: Path) -> Path:
    """The interpreter of a virtual environment with links to Metaflow, what that needs, and this package."""
    venv.create(folder, symlinks=True, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "metaflow_extensions").mkdir()
    for name in {*with_requirements("metaflow", set()), "metaflow-gang"}:
        distribution = metadata.distribution(name)
        for part in {path.parts[0] for path in distribution.files or () if path.parts[0] not in ("..", "__pycache__")}:
            source, target = Path(str(distribution.locate_file(part))), site / part
            if part == "metaflow_extensions":
                source, target = source / "gang", target / "gang"
            if not target.exists():
                target.symlink_to(source)
    return folder / "bin" / "python"


@pytest.mark.slow
def test_on_a_bare_system_only_gang_is_there_and_works(tmp_path: Path) -> None:
    python = bare_python(tmp_path / "venv")
    (tmp_path / "bin").mkdir()
    for name in PROGRAMS:
        if path := shutil.which(name):
            (tmp_path / "bin" / name).symlink_to(path)
    env = flow_environment({"PATH": str(tmp_path / "bin"), "KUBECONFIG": str(tmp_path / "none"), "PYTHONPATH": None})
    begun = time.monotonic()
    done = subprocess.run(
        [str(python), "-m", "metaflow_extensions.gang.cli", "doctor", "--json"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    took = time.monotonic() - begun
    assert done.returncode == 0 and "Traceback" not in done.stderr, done
    findings = json.loads(done.stdout)["findings"]
    found = {what["name"]: what for what in findings if what["group"] != "Two-node smoke test"}
    missing = {name for name, what in found.items() if what["state"] == "missing"}
    assert missing == {"@torchrun", "@deepspeed", "@metaflow_ray", "@tensorflow", "@jax", "@mpi", "horovod_run"}, done
    assert all(found[name]["advice"] for name in missing), "what to install"
    assert "openmpi-bin" in found["@mpi"]["advice"]
    assert (found["OpenSSH"]["state"], found["@gang"]["state"]) == ("not needed", "ok")
    assert not [what for what in findings if what["state"] == "broken"], done
    smoke = [what for what in findings if what["group"] == "Two-node smoke test"]
    assert [(what["name"], what["state"]) for what in smoke] == [("@gang", "ok")], done
    print(f"it took {took:.1f} s")
    assert took < SMOKE_S

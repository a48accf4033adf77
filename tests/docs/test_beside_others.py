"""Beside each other package of decorators: nobody's file changes, ours and theirs are found, and a gang runs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions, version
from pathlib import Path

import pytest
from checkouts import copy_of_checkout
from support.flows import flow_environment

pytestmark = pytest.mark.big

LIMIT_S = 280.0

OURS = ("deepspeed", "gang", "huggingface_card", "jax", "metaflow_ray", "mpi", "slurm", "tensorflow", "torchrun")

THEIRS: dict[str, dict[str, str]] = {
    "metaflow-torchrun==0.2.2": {},
    "metaflow-deepspeed==0.0.9": {},
    "metaflow-ray==0.1.5": {},
    "metaflow-tensorflow==0.0.4": {},
    "metaflow-mpi==0.0.4": {},
    "metaflow-slurm==0.0.4": {},
    "metaflow-checkpoint==0.2.14": dict.fromkeys(("checkpoint", "model", "huggingface_hub"), "obcheckpoint"),
    "metaflow-pyspy==0.1.2": {"pyspy": "obpyspy"},
    "metaflow-netflixext==1.3.17": dict.fromkeys(
        ("conda", "huggingface", "named_env", "pip", "pypi", "sys_packages"), "netflixext"
    ),
}
"""The decorators that only they have or that they put in the place of Metaflow's, and the extension that has them."""

FLOW = """
import sys
import metaflow
from metaflow import FlowSpec, current, gang, step
from metaflow.plugins import STEP_DECORATORS

class Beside(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    THEIRS
    @gang
    @step
    def work(self):
        self.nodes = current.gang.all_gather(current.gang.node_index)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.nodes = [one.nodes for one in inputs]
        self.next(self.end)

    @step
    def end(self):
        print("RESULT", self.nodes)

if __name__ == "__main__":
    if sys.argv[1] == "whose":
        for kind in STEP_DECORATORS:
            if hasattr(metaflow, kind.name):
                print("WHOSE", kind.name, kind.__module__)
    else:
        Beside()
"""

DECORATORS = {"metaflow-pyspy": "@metaflow.pyspy(interval=1)", "metaflow-checkpoint": "@metaflow.checkpoint"}
"""Theirs that a local gang can have without further software."""


class Installation:
    """A virtual environment, to which pip adds distributions."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder)
        self.python = folder / "bin" / "python"
        (self.site,) = folder.glob("lib/python3*/site-packages")

    def pip(self, *words: str) -> None:
        argv = [sys.executable, "-m", "pip", "--python", str(self.python), *words, "--quiet"]
        subprocess.run([*argv, "--disable-pip-version-check"], check=True, timeout=LIMIT_S)

    def digests(self, name: str) -> dict[str, str]:
        """What each file of a distribution holds, by its path."""
        (found,) = (one for one in distributions(path=[str(self.site)]) if one.metadata["Name"] in (name, dashed(name)))
        return digests_of(found)


def dashed(name: str) -> str:
    return name.replace("-", "_")


def digests_of(found: Distribution) -> dict[str, str]:
    about = (".pyc", "RECORD", "direct_url.json")  # written by pip, anew for each install
    paths = [Path(str(found.locate_file(path))) for path in found.files or () if not path.name.endswith(about)]
    assert len(paths) > 5, "an install without a list of files"
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our wheel."""
    folder = tmp_path_factory.mktemp("dist")
    checkout = copy_of_checkout(tmp_path_factory.mktemp("checkout"))
    argv = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(checkout)]
    subprocess.run(argv, check=True, timeout=LIMIT_S, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installation(ours: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Metaflow, in the version tested here, and ours."""
    made = Installation(tmp_path_factory.mktemp("venv") / "venv")
    made.pip("install", f"metaflow=={version('metaflow')}", str(ours))
    yield made


@pytest.mark.parametrize("theirs", THEIRS)
def test_nobodys_file_changes_and_all_decorators_are_found(
    installation: Installation, ours: Path, theirs: str, tmp_path: Path
) -> None:
    name = theirs.partition("==")[0]
    before = installation.digests("metaflow-gang")
    metaflow = installation.digests("metaflow")
    installation.pip("install", theirs)
    try:
        its = installation.digests(name)
        assert installation.digests("metaflow-gang") == before, "theirs, installed after ours"
        installation.pip("install", "--force-reinstall", "--no-deps", str(ours))
        assert installation.digests(name) == its, "ours, installed after theirs"
        assert installation.digests("metaflow") == metaflow
        (tmp_path / "flow.py").write_text(FLOW.replace("THEIRS", DECORATORS.get(name, "")))
        whose = dict(line.split()[1:] for line in said(installation, tmp_path, "whose") if line.startswith("WHOSE "))
        for decorator in OURS:
            assert whose[decorator].startswith("metaflow_extensions.gang."), whose
        for decorator, extension in THEIRS[theirs].items():
            assert whose[decorator].startswith(f"metaflow_extensions.{extension}."), whose
        where = ("--datastore", "local", "--metadata", "local")
        output = said(installation, tmp_path, *where, "run")
        assert any(line.endswith("RESULT [[0, 1], [0, 1]]") for line in output), output
    finally:
        installation.pip("uninstall", "--yes", name)
    assert installation.digests("metaflow-gang") == before, "theirs, uninstalled"


def said(installation: Installation, folder: Path, *words: str) -> list[str]:
    """The lines that the flow prints; it has to end well."""
    path = f"{installation.python.parent}:{os.environ['PATH']}"
    env = flow_environment({"METAFLOW_HOME": str(folder / "home"), "PATH": path})
    argv = [str(installation.python), "flow.py", *words]
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()

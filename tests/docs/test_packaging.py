"""What a wheel, an editable install and Metaflow's code package hold, and who wins beside an old package."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from checkouts import FOLDERS, copy_of_checkout
from packaging.requirements import Requirement
from support.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

INSTALLED = "metaflow_extensions/gang/"
OLD_PACKAGES = ("deepspeed", "mpi", "ray", "slurm", "tensorflow", "torchrun")

FLOW = """
from metaflow import FlowSpec, step


class Hello(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Hello()
"""

WHOSE = """
import metaflow
from metaflow import torchrun, gang, TorchrunSingleNodeMultiGPU
for name in ("torchrun", "gang"):
    print(name, getattr(metaflow, name).args[0].__module__)
print("TorchrunSingleNodeMultiGPU", TorchrunSingleNodeMultiGPU.__module__)
print("exported", *sorted(n for n in dir(metaflow) if getattr(getattr(metaflow, n), "__module__", "").startswith(
    "metaflow_extensions.gang")))
"""


def tree(root: Path) -> dict[str, bytes]:
    """Every file of the package's folders, by its path inside ``metaflow_extensions/gang``."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for folder in FOLDERS
        for path in (root / folder).rglob("*")
        if path.is_file() and not any(part == "__pycache__" or part.endswith(".egg-info") for part in path.parts)
    }


def run(*argv: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to a good end, as from a shell with nothing of this test's environment in the way."""
    foreign = ("METAFLOW", "MF_", "COVERAGE_", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    env |= {"METAFLOW_USER": "tester", "METAFLOW_HOME": str(cwd), "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(cwd)}
    done = subprocess.run([str(a) for a in argv], cwd=cwd, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{argv} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def packed(python: Path, cwd: Path) -> dict[str, bytes]:
    """What Metaflow's code package holds of us. (``package save`` is broken in Metaflow 2.16.0; list is not.)"""
    (cwd / "hello.py").write_text(FLOW)
    listed = run(python, "hello.py", "package", "list", cwd=cwd)
    paths = (line for line in (listed.stdout + listed.stderr).splitlines() if f"/{INSTALLED}" in line)
    return {line.split(f"/{INSTALLED}", 1)[1]: Path(line).read_bytes() for line in paths}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the build reads."""
    return copy_of_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as `python -m build` makes it: through the source distribution."""
    dist = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, checkout, cwd=dist)
    assert len(list(dist.glob("*.tar.gz"))) == 1
    (made,) = dist.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The interpreter of a new virtual environment that has Metaflow, in the version tested here, but not us."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"metaflow=={metadata.version('metaflow')}", cwd=folder)
    yield python
    shutil.rmtree(folder)


def test_every_package_folder_is_listed() -> None:
    """setuptools drops a folder that is not in the list without a word."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["packages"]
    folders = {Path(name).parent.as_posix().replace("/", ".") for name in tree(ROOT) if name.endswith(".py")}
    assert sorted(listed) == sorted(["metaflow", *(f"metaflow_extensions.gang.{folder}" for folder in folders)])


def test_a_wheel_made_from_the_sdist_holds_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    types = {f"metaflow/{path.name}": path.read_bytes() for path in (ROOT / "stubs" / "metaflow").glob("*.pyi")}
    assert held == {INSTALLED + name: content for name, content in tree(ROOT).items()} | types


def test_there_is_no_dependency(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        head = email.message_from_bytes(archive.read(name))
    required = [Requirement(line) for line in head.get_all("Requires-Dist", [])]
    plain = [r for r in required if "extra" not in str(r.marker)]
    assert [str(r) for r in plain if r.marker is None or r.marker.evaluate()] == []
    # Named, never installed: Metaflow loads us after them.
    assert sorted(r.name for r in plain if r.marker) == [f"metaflow-{name}" for name in OLD_PACKAGES]
    frameworks = {"torch", "deepspeed", "jax", "ray", "tensorflow", "mpi"}
    assert set(head.get_all("Provides-Extra", [])) == {*frameworks, "docs", "test"}
    assert head["Requires-Python"] == ">=3.10"
    assert head["License-Expression"] == "Apache-2.0"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["wheel", "checkout", "editable"])
def test_metaflow_packs_the_tree_and_says_our_version(
    how: str, wheel: Path, checkout: Path, fresh_python: Path, tmp_path: Path
) -> None:
    what = {"wheel": [wheel], "checkout": [checkout], "editable": ["-e", checkout]}[how]
    run(fresh_python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", *what, cwd=tmp_path)
    assert packed(fresh_python, tmp_path) == tree(ROOT)
    said = run(fresh_python, "hello.py", "version", cwd=tmp_path)
    ours = f"+gang({wheel.name.split('-')[1]})"
    assert ours in said.stdout + said.stderr, said
    names = run(fresh_python, "-c", WHOSE, cwd=tmp_path).stdout.splitlines()
    assert names[-1] == "exported TorchrunSingleNodeMultiGPU gang_log horovod_run"


@pytest.mark.slow
def test_it_leaves_outerbounds_metaflow_in_place_and_says_what_is_missing(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    install = (sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet")
    # With its dependencies, as a user does it.
    run(*install, "requests", wheel, cwd=tmp_path)
    foreign = ("METAFLOW", "PYTHONPATH", "COVERAGE_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    for module in ("core.step.decorator", "toplevel.gang_toplevel"):
        argv = [str(python), "-c", f"import metaflow_extensions.gang.{module}"]
        missing = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
        assert missing.stderr.splitlines()[-1] == (
            "ImportError: metaflow-gang needs Metaflow, and there is none here: pip install metaflow."
        ), missing
    run(*install, "--no-deps", "ob-metaflow==2.19.39.1", cwd=tmp_path)
    run(*install, "--force-reinstall", wheel, cwd=tmp_path)
    (site,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    assert {path.name for path in site.glob("*metaflow*.dist-info")} == {
        "ob_metaflow-2.19.39.1.dist-info",
        f"metaflow_gang-{wheel.name.split('-')[1]}.dist-info",
    }
    (tmp_path / "hello.py").write_text(FLOW)
    said = run(python, "hello.py", "version", cwd=tmp_path)
    assert "2.19.39.1" in said.stdout + said.stderr and "+gang(" in said.stdout + said.stderr, said
    names = run(python, "-c", WHOSE, cwd=tmp_path).stdout.splitlines()
    assert names[-1] == "exported TorchrunSingleNodeMultiGPU gang_log horovod_run"
    # The same, as if it were older.
    about = site / "ob_metaflow-2.19.39.1.dist-info" / "METADATA"
    about.write_text(about.read_text().replace("Version: 2.19.39.1", "Version: 2.15.21.1"))
    argv = [str(python), "-c", "import metaflow; print(hasattr(metaflow, 'gang'), hasattr(metaflow, 'retry'))"]
    old = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert (old.returncode, old.stdout) == (0, "False True\n"), old
    assert old.stderr == (
        "metaflow-gang needs Metaflow 2.16 or newer, and ob-metaflow 2.15.21.1 is installed, so that there is no "
        "@gang, @torchrun and so on: pip install --upgrade ob-metaflow.\n"
    )


@pytest.mark.slow
def test_ours_wins_beside_metaflow_torchrun(checkout: Path, fresh_python: Path, tmp_path: Path) -> None:
    """Also from the checkout's own root, where what the build left behind is on Python's path."""
    run(fresh_python, "-m", "pip", "install", "--quiet", "metaflow-torchrun==0.2.2", cwd=tmp_path)
    run(fresh_python, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", ".", cwd=checkout)
    assert (checkout / "build").exists(), "pip builds elsewhere now: this test no longer sees what a build leaves"
    try:
        for folder in (checkout, tmp_path):
            names = run(fresh_python, "-c", WHOSE, cwd=folder).stdout.splitlines()
            assert len(names) == 4, names
            for line in names[:3]:
                name, module = line.split()
                assert module.startswith("metaflow_extensions.gang."), f"{name} is {module}, seen from {folder}"
    finally:
        run(fresh_python, "-m", "pip", "uninstall", "--quiet", "--yes", "metaflow-torchrun", cwd=tmp_path)

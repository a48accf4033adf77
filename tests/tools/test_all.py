"""The tests that `make test` leaves out: long ones, the matrix of faults, other versions of Python and Metaflow.

Each shard is one environment and one command: a file's tests marked ``big``, or the ordinary tests and the demo on
another Python or Metaflow. A shard that passed is not run again until a file of the tree changes, so an interrupted run
goes on where it was. Environments, logs and what has passed are in ``.test-all/``.

    test_all.py                     every shard that has not passed
    test_all.py --list              their names, and which have passed
    test_all.py 'big-*' 1/3         those that match, or the first of three parts (to share them between machines)
"""

from __future__ import annotations

import fnmatch
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".test-all"
OLDEST_METAFLOW = "2.16.0"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
DEMO = ("python", "examples/torchrun/digits.py", "--datastore", "local", "--metadata", "local", "run")
LIMIT_S = 5400
"""Seconds after which a shard's command is ended and has failed."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment: an interpreter, and a Metaflow where it is not the one of tests/constraints.txt."""

    name: str
    python: str
    metaflow: str | None = None

    @property
    def bin(self) -> Path:
        return HOME / "venv" / self.name / "bin"

    def install(self, log: Path) -> bool:
        """Made anew unless it is there; the package is always installed as the tree is now."""
        ready = self.bin.parent / "ready"
        constraints = self.bin.parent / "constraints.txt"
        pip = [str(self.bin / "python"), "-m", "pip", "install", "-c", str(constraints)]
        if not ready.exists():
            shutil.rmtree(self.bin.parent, ignore_errors=True)
            if not logged([self.python, "-m", "venv", str(self.bin.parent)], log):
                return False
        pins = (ROOT / "tests" / "constraints.txt").read_text()
        if self.metaflow:
            pins = re.sub(r"(?m)^metaflow==.*$", f"metaflow=={self.metaflow}", pins)
        constraints.write_text(pins)
        shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)
        if not logged([*pip, ".[deepspeed,jax,mpi,ray,torch,test]"], log):
            return False
        for script in ("install_mpis.sh", "install_azurite.sh"):
            if not logged([f"tests/tools/{script}", str(self.bin / "python")], log):
                return False
        ready.touch()
        return logged([*pip, "--no-deps", "--no-build-isolation", "--force-reinstall", "."], log)


@dataclass(frozen=True)
class Shard:
    """One thing to pass: ``argv`` is run from the repo's root, its first word taken from the environment's folder."""

    name: str
    environment: Environment
    argv: tuple[str, ...]

    @property
    def log(self) -> Path:
        return HOME / tree_hash() / f"{self.name}.log"

    @property
    def passed(self) -> Path:
        return self.log.with_suffix(".passed")

    def run(self) -> bool:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")
        program, *arguments = self.argv
        good = self.environment.install(self.log) and logged(
            [str(self.environment.bin / program), *arguments], self.log
        )
        if good:
            self.passed.touch()
        return good


def logged(argv: list[str], log: Path) -> bool:
    """Run a command with its output in the log; whether it ended well within the limit."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    # Metaflow wants to know who runs a flow, and a bare environment does not say.
    env.setdefault("METAFLOW_USER", "demo")
    with log.open("a") as output:
        print("$", *argv, file=output, flush=True)
        try:
            done = subprocess.run(argv, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            print(f"ended after {LIMIT_S} s", file=output)
            return False
    return done.returncode == 0


@functools.cache
def tree_hash() -> str:
    """Names the tree as it is, changes that are not committed included."""
    index = HOME / "index"
    HOME.mkdir(exist_ok=True)
    env = dict(os.environ, GIT_INDEX_FILE=str(index))
    subprocess.run(["git", "add", "--all"], cwd=ROOT, env=env, check=True)
    made = subprocess.run(["git", "write-tree"], cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    return made.stdout.strip()[:12]


def interpreters() -> dict[str, str]:
    """The supported Pythons of this machine, by version, oldest first: on the PATH, and those that pyenv keeps."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {}
    for version in PYTHONS:
        kept = sorted(str(path) for path in pyenv.glob(f"{version}.*/bin/python{version}"))
        for candidate in filter(None, [shutil.which(f"python{version}"), *kept]):
            # A name on the PATH may be a shim for a version that is not switched on.
            if subprocess.run([candidate, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0:
                found[version] = candidate
                break
    return found


def shards() -> Iterator[Shard]:
    own = Environment("own", sys.executable)
    # It keeps by itself which cells have passed, so this goes on where it was stopped, too.
    yield Shard("faults", own, ("python", "tests/faults/walk.py"))
    yield Shard("backends", own, ("pytest", "-n", "2", "--dist", "worksteal", "-m", "big or not big", "tests/backends"))
    for file in sorted((ROOT / "tests").glob("test_*.py")):
        if "mark.big" in file.read_text():
            yield Shard(f"big-{file.stem}", own, ("pytest", "-m", "big", str(file.relative_to(ROOT))))
    matrix = [Environment(f"metaflow-{OLDEST_METAFLOW}", sys.executable, OLDEST_METAFLOW)]
    found = interpreters()
    here = "{}.{}".format(*sys.version_info)
    for version in dict.fromkeys([min(found, key=PYTHONS.index), max(found, key=PYTHONS.index)] if found else []):
        if version != here:
            matrix.append(Environment(f"python-{version}", found[version]))
    for environment in matrix:
        yield Shard(f"demo-{environment.name}", environment, DEMO)
        yield Shard(f"tests-{environment.name}", environment, ("pytest",))


def chosen(words: list[str]) -> list[Shard]:
    """The shards that match any of the patterns (all where there is none), or the part ``K/N`` of those."""
    patterns = [word for word in words if "/" not in word]
    some = [s for s in shards() if not patterns or any(fnmatch.fnmatch(s.name, pattern) for pattern in patterns)]
    for word in words:
        if "/" in word:
            part, parts = (int(number) for number in word.split("/"))
            some = some[part - 1 :: parts]
    return some


def main(words: list[str]) -> int:
    listing = "--list" in words
    some = chosen([word for word in words if word != "--list"])
    if not some:
        print(f"No shard matches {' '.join(words)!r}: 'tests/tools/test_all.py --list' names them.", file=sys.stderr)
        return 2
    counts = {"passed": 0, "failed": 0, "passed before": 0}
    for shard in some:
        if listing:
            print(f"{shard.name}: {'passed' if shard.passed.exists() else 'to run'}")
            continue
        if shard.passed.exists():
            outcome = "passed before"
        else:
            print(f"{shard.name} ... ", end="", flush=True)
            outcome = "passed" if shard.run() else "failed"
            print(f"{outcome}; see {shard.log.relative_to(ROOT)}")
        counts[outcome] += 1
    if not listing:
        print(", ".join(f"{number} {outcome}" for outcome, number in counts.items()))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

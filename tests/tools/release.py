"""Builds and checks what a release uploads, and uploads nothing: ``python tests/tools/release.py`` (``make release``).

Wheel and sdist are those of the last commit, byte for byte the same on every machine with the same setuptools.
"""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def build(source: Path, epoch: int, out: Path) -> tuple[Path, Path]:
    """Build the sdist, and of it the wheel.

    Parameters
    ----------
    source : path
        A copy of the tree that nothing else uses: its files get plain modes, and the build leaves files in it.
    epoch : int
        The time of every file in both, in seconds.
    out : path
        A folder, empty or not yet there.

    Returns
    -------
    (path, path)
        The wheel and the sdist.
    """
    for path in (source, *source.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)],
        {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0"},
    )
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    sdist.write_bytes(reproducible(sdist, epoch))
    return wheel, sdist


def reproducible(sdist: Path, epoch: int) -> bytes:
    """The archive, in which setuptools writes the build's own times, users and order, without these."""
    packed = io.BytesIO()
    with (
        tarfile.open(sdist) as old,
        gzip.GzipFile("", "wb", fileobj=packed, mtime=epoch) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda one: one.name):
            plain = tarfile.TarInfo(member.name)
            plain.type, plain.size, plain.mtime = member.type, member.size, epoch
            plain.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            new.addfile(plain, old.extractfile(member))
    return packed.getvalue()


def try_out(wheel: Path) -> str:
    """Install the wheel in a new virtual environment and return what ``metaflow-gang doctor --help`` prints there."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        programs = Path(folder, "bin")
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        pip = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        run([*pip, "--disable-pip-version-check", str(wheel)], environ)
        return run([str(programs / "metaflow-gang"), "doctor", "--help"], environ)


def run(argv: list[str], environ: dict[str, str]) -> str:
    """Run a program to a good end; what it has printed. Exits with its output where it fails."""
    done = subprocess.run(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout


def main() -> None:
    """Make dist/ anew, and say what is in it."""
    if git("status", "--porcelain", "--untracked-files=no").strip():
        sys.exit("A release is made of the last commit, and this tree has changes: commit or stash them.")
    out = ROOT / "dist"
    if out.exists() and any(out.iterdir()):
        sys.exit(f"{out} has files of an earlier build: remove it.")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(git("archive", "--format=tar", "HEAD"))) as tree:
            tree.extractall(folder)
        files = build(Path(folder), int(git("log", "-1", "--format=%ct")), out)
    print(run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)], dict(os.environ)).rstrip())
    try_out(files[0])
    print("metaflow-gang doctor --help: answers, installed from the wheel in a new virtual environment")
    print(f"Nothing was uploaded. To do so: {Path(sys.executable).name} -m twine upload {' '.join(map(str, files))}")


if __name__ == "__main__":
    main()

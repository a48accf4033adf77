"""The machine on which Slurm's commands run and the job's folder is: this one, where it is a login node."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from ..exceptions import SlurmDoesNotAnswer, SlurmException

ANSWER_S = 120.0
"""The longest that a command of Slurm's may take; its own retries of a busy controller take up to a minute."""

_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
"""Variables of a run inside a job of its own describe that job, but for these."""


def environment_of_commands(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of Slurm's commands: sbatch gives a job those named SLURM_..., whatever else it is told."""
    return {
        name: value
        for name, value in environ.items()
        if name in _KEPT or not name.startswith(("SLURM_", "METAFLOW_GANG"))
    }


class Machine:
    """The machine of the run, as a login node: the job's folder is on a file system that the nodes have, too."""

    prefix: tuple[str, ...] = ()
    """Before a command's own words."""

    where = "this machine"

    look_s = 0.5
    """Seconds between two looks into the job's folder."""

    def run(self, argv: Sequence[str], input: bytes = b"", timeout_s: float = ANSWER_S) -> tuple[int, bytes, str]:
        """Run a command; its exit status, its output, and what it says on stderr.

        Raises
        ------
        SlurmException
            There is no such command.
        SlurmDoesNotAnswer
            It takes longer than ``timeout_s``.
        """
        try:
            done = subprocess.run(
                [*self.prefix, *self.quoted(argv)],
                input=input,
                capture_output=True,
                timeout=timeout_s,
                env=environment_of_commands(os.environ),
            )
        except FileNotFoundError:
            raise SlurmException(
                f"There is no {argv[0]} on {self.where}: run the flow on a login node of the cluster, or name one by "
                '@slurm(login="user@host") or METAFLOW_SLURM_LOGIN.'
            ) from None
        except subprocess.TimeoutExpired:
            raise SlurmDoesNotAnswer(f"{argv[0]} on {self.where} takes longer than {timeout_s:g} s.") from None
        return done.returncode, done.stdout, done.stderr.decode("utf-8", "replace").strip()

    def quoted(self, argv: Sequence[str]) -> list[str]:
        """The words of a command, as :attr:`prefix` wants them."""
        return list(argv)

    def has(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        return os.path.exists(path)

    def home(self) -> str:
        """The user's home folder."""
        return os.path.expanduser("~")

    def make_folder(self, folder: str, files: Mapping[str, bytes]) -> None:
        """Make a folder that only this user can look into, with these files."""
        try:
            # There is one where an attempt was interrupted before its job existed.
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder)
            for name, content in files.items():
                with open(os.open(os.path.join(folder, name), os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
                    file.write(content)
        except OSError as error:
            raise SlurmException(f"The job's folder {folder} cannot be made: {error}.") from None

    def touch(self, path: str) -> None:
        """Make an empty file; no error where its folder is gone."""
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    def names(self, folder: str) -> list[str]:
        """The files in a folder, as they are now on the machine that keeps them."""
        with contextlib.suppress(OSError):
            return os.listdir(folder)
        return []

    def read(self, path: str, start: int = 0) -> bytes:
        """What a file has from byte ``start`` on; nothing where there is no such file."""
        with contextlib.suppress(OSError), open(path, "rb") as file:
            file.seek(start)
            return file.read()
        return b""

    def remove(self, folder: str) -> None:
        """Remove a folder."""
        shutil.rmtree(folder, ignore_errors=True)


def _make(folder: str) -> None:
    """Make a folder. The run's own above it may be removed meanwhile, as that of its last job."""
    for last in (False, False, True):
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        try:
            os.mkdir(folder, 0o700)
            return
        except FileNotFoundError:
            if last:
                raise

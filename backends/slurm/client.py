"""Slurm's commands and the job's folder, on this machine where that is a login node, or on one over SSH."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from .exceptions import SlurmDoesNotAnswer, SlurmException, SlurmRefused
from .states import JobState, parse_sacct, parse_scontrol

ANSWER_S = 120.0
"""The longest that a command of Slurm's may take; its own retries of a busy controller take up to a minute."""

_NO_ANSWER = re.compile(
    r"Unable to contact|Connection refused|connect failure|timed out|Socket|Zero Bytes|temporarily|Transport endpoint"
    r"|Connection (?:closed|reset)|Could not resolve",
    re.IGNORECASE,
)
"""What Slurm's commands, and ssh, print where nobody answers."""

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


class Client:
    """What this backend asks of Slurm."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def submit(self, sbatch: Sequence[str], script: str) -> str:
        """Submit a job; returns its number.

        Raises
        ------
        SlurmRefused
            Slurm does not take the job; the message is sbatch's own.
        SlurmDoesNotAnswer
        """
        status, output, complaint = self._machine.run(sbatch, script.encode())
        if status == 0:
            return output.decode().strip().partition(";")[0]
        said = " ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in complaint.splitlines())
        if _NO_ANSWER.search(said):
            raise SlurmDoesNotAnswer(f"sbatch on {self._machine.where}: {said}")
        raise SlurmRefused(f"sbatch: {said or f'exit status {status}'}")

    def find(self, name: str) -> str:
        """The number of this user's job of this name; "" where Slurm has none. Raises SlurmDoesNotAnswer."""
        status, output, complaint = self._machine.run(
            ["squeue", "--noheader", "--me", "--states=all", f"--name={name}", "--format=%A"]
        )
        if status:
            raise SlurmDoesNotAnswer(f"squeue on {self._machine.where}: {complaint}")
        return [*output.decode().split(), ""][0]

    def state(self, job: str) -> JobState:
        """What Slurm says about a job. Raises SlurmDoesNotAnswer."""
        status, output, complaint = self._machine.run(["scontrol", "--oneliner", "show", "job", job])
        if status == 0 and output.strip():
            return parse_scontrol(output.decode("utf-8", "replace").splitlines()[0])
        if "Invalid job id" not in complaint:
            raise SlurmDoesNotAnswer(f"scontrol on {self._machine.where}: {complaint}")
        # The controller forgets jobs after MinJobAge; where the site keeps accounts, those remember.
        status, output, _ = self._machine.run(
            ["sacct", "-j", job, "-X", "-n", "-P", "-o", "State,Reason,ExitCode,NodeList"]
        )
        return parse_sacct(output.decode("utf-8", "replace")) if status == 0 else JobState("")

    def cancel(self, job: str) -> None:
        """Cancel a job; no error where it is over."""
        with contextlib.suppress(SlurmException):
            self._machine.run(["scancel", "--quiet", job])

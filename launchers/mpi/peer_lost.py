"""The messages of mpirun and of a rank where another rank or node failed first."""

from __future__ import annotations

PEER_LOST = (
    # Open MPI 4's runtime, on control: the one on another node is gone.
    r"ORTE has lost communication with a remote daemon",
    r"An ORTE daemon has unexpectedly failed after launch",
    r"ORTE was unable to reliably start one or more daemons",
    # Open MPI 5's.
    r"PRTE has lost communication with a remote daemon",
    r"A daemon on node \S+ failed to start",
    # A rank of Open MPI whose connection to another broke.
    r"An error occurred in Socket closed",
    r"Open MPI failed to TCP connect to a peer MPI process",
    # Hydra: the connection to the proxy of another node closed.
    r"assert \(!closed\) failed",
    # It has ended the ranks, of which none has reported a failure: one has left without having ended MPI.
    r"YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed \(signal 9\)",
)
"""Regular expressions that mean that another node or rank failed first.

Found in the output of ranks and hosts that were killed (tests/launchers/mpi/test_mpi_failures.py).
"""

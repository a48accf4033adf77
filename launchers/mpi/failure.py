"""What mpirun, and a rank, tell of a failure, as an exception for the step."""

from __future__ import annotations

from ...core.exceptions import GangException, ProcessFailed
from ...core.guard.text import indent

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
)
"""Regular expressions that say: another node or rank went first. Found in the output of ranks and hosts that were
killed (tests/launchers/mpi/test_mpi_failures.py).
"""


class MpiException(GangException):
    """mpirun, or a rank of it, has failed; the message says which, how, and shows its traceback or last output."""

    headline = "@mpi"


def explain(failure: ProcessFailed, what: str) -> MpiException:
    """The exception for the step. ``what`` was running: "python train.py"."""
    detail = failure.detail
    shown = f":\n{indent(detail)}" if detail.strip() else ", and printed nothing."
    return MpiException(f"{failure.title}, running {what}, {failure.ended}{shown}")

"""The exception of ``@mpi``, and how a failed process becomes one."""

from __future__ import annotations

from ...core.exceptions import GangException, ProcessFailed
from ...core.guard.text import indent


class MpiException(GangException):
    """mpirun, or a rank of it, has failed; the message says which, how, and shows its traceback or last output."""

    headline = "@mpi"


def explain(failure: ProcessFailed, what: str) -> MpiException:
    """The exception for the step. ``what`` was running: "python train.py"."""
    detail = failure.detail
    shown = f":\n{indent(detail)}" if detail.strip() else ", and printed nothing."
    return MpiException(f"{failure.title}, running {what}, {failure.ended}{shown}")

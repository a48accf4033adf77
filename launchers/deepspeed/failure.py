"""What a failed rank, or DeepSpeed's launcher, tells of itself, as an exception for the step."""

from __future__ import annotations

from ...core.failure import GangException, ProcessFailed, ToolMissing
from ...core.functions import error_text, load_error, read_error
from ...core.guard.verdict import how_it_ended, indent, last_lines, said_by


class DeepspeedException(GangException):
    """A rank, or DeepSpeed's launcher, has failed; the message says which, how, and shows its traceback or output."""

    headline = "@deepspeed"


class DeepspeedMissing(DeepspeedException, ToolMissing):
    """There is no DeepSpeed where the ranks would run."""

    headline = "@deepspeed: DeepSpeed is missing"


def explain(failure: ProcessFailed, what: str, where: str) -> Exception:
    """The exception for the step: the rank's own where a function of this node raised it, else one that tells of it.

    Parameters
    ----------
    what : str
        What was running: "train.py", "train()".
    where : str
        "node 1", "the gang" or "this machine".
    """
    detail = ""
    if failure.exit_code > 0:
        error = load_error(failure.error_file, f"{failure.title} on {where}")
        if error is not None:
            return error
        detail = error_text(read_error(failure.error_file)) or failure.traceback
    detail = detail or last_lines(said_by(failure.rank, failure.tail) if failure.rank is not None else failure.tail)
    shown = f":\n{indent(detail)}" if detail.strip() else ", and printed nothing."
    return DeepspeedException(f"{failure.title} on {where}, running {what}, {how_it_ended(failure.exit_code)}{shown}")

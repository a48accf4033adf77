"""The exceptions of ``@torchrun``, and the one that a failed rank or agent becomes."""

from __future__ import annotations

from ...core.calls.local_process import explain as explain_process
from ...core.exceptions import GangException, ProcessFailed, ToolMissing


class TorchrunException(GangException):
    """A rank, or torchrun itself, has failed; the message says which, how, and shows its traceback or last output."""

    headline = "@torchrun"


class TorchNotInstalledException(TorchrunException, ToolMissing):
    """There is no torch where the ranks would run."""

    headline = "@torchrun: PyTorch is missing"


def explain(failure: ProcessFailed, what: str, where: str) -> Exception:
    """The exception for the step: the rank's own where a function raised it, else one with rank, end and output.

    Parameters
    ----------
    what : str
        What was running: "train.py", "train()".
    where : str
        "node 1", or "this machine".
    """
    return explain_process(failure, what, where, TorchrunException, after_signals=True)

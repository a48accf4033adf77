"""The exceptions of ``@deepspeed``."""

from __future__ import annotations

from ...core.exceptions import GangException, ToolMissing


class DeepspeedException(GangException):
    """A rank, or DeepSpeed's launcher, has failed; the message says which, how, and shows its traceback or output."""

    headline = "@deepspeed"


class DeepspeedMissing(DeepspeedException, ToolMissing):
    """There is no DeepSpeed where the ranks would run."""

    headline = "@deepspeed: DeepSpeed is missing"

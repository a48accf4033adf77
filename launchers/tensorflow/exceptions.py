"""The exceptions of ``@tensorflow``."""

from __future__ import annotations

from ...core.exceptions import BadAttribute, GangException, ToolMissing


class TensorflowException(GangException):
    """A node's program has failed; the message says which, how, and shows its traceback or last output."""

    headline = "@tensorflow"


class TensorflowMissing(TensorflowException, ToolMissing):
    """There is no TensorFlow where the step runs."""

    headline = "@tensorflow: TensorFlow is missing"


class TooLate(TensorflowException, BadAttribute):
    """TensorFlow was used before the step, so it cannot take other nodes any more."""

    headline = "@tensorflow: TensorFlow was used too early"

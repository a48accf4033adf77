"""What a step raises where TensorFlow fails."""

from __future__ import annotations

import os
import re
import traceback

from ...core.exceptions import BadAttribute, GangException, ToolMissing


class TensorflowException(GangException):
    """A node's program has failed; the message says which, how, and shows its traceback or last output."""

    headline = "@tensorflow"


class TensorflowMissing(TensorflowException, ToolMissing):
    """There is no TensorFlow where the step runs."""

    headline = "@tensorflow: TensorFlow is missing"


class TooLate(TensorflowException, BadAttribute):
    """TensorFlow has been set to work before the step, so that it cannot be told of the other nodes any more."""

    headline = "@tensorflow: TensorFlow was used too early"


_KERAS_3_FIT = re.compile(
    r"unsupported type \(<class 'tensorflow\.python\.distribute\.values\.PerReplica'>\) to a Tensor"
)
"""What fit of Keras 3 says on every worker under MultiWorkerMirroredStrategy (Keras 3.15, TensorFlow 2.21)."""


def advice(error: BaseException) -> str:
    """What to do about ``error``, where that is known; else ""."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    if _KERAS_3_FIT.search(text) and os.environ.get("TF_USE_LEGACY_KERAS") != "1":
        return (
            "fit of Keras 3 does not work under MultiWorkerMirroredStrategy. That of tf_keras does: install tf_keras, "
            'and set TF_USE_LEGACY_KERAS=1 before TensorFlow is imported, by @environment(vars={"TF_USE_LEGACY_KERAS": '
            '"1"}), or by current.tensorflow.run(..., env={"TF_USE_LEGACY_KERAS": "1"}). A loop of your own works with '
            "Keras 3."
        )
    return ""

"""TensorFlow's own errors: those that mean that another node failed first, and those with a known workaround."""

from __future__ import annotations

import os
import re
import traceback

PEER_LOST = (
    # A collective, or what prepares one, called another task that is gone: grpc's status 14 is UNAVAILABLE.
    r"Additional GRPC error information from remote target /job:[^\n]*\n[^\n]*grpc_status:14\b",
    # The strategy's own check, every 30 s, and TensorFlow's coordination service, which is in worker 0's process.
    r"cluster check alive failed, \S+ is down",
    r"Failed to send RPC to coordination service\. Either the leader task was preempted",
    r"task \S+ has been set to ERROR in coordination service",
    # The same service, and its clients, where another process is stopped (SIGSTOP).
    r"RPC: /tensorflow\.CoordinationService/Heartbeat",
    r"The following tasks are unhealthy \(stopped sending heartbeats\)",
)
"""Regular expressions of TensorFlow's messages where another node failed first."""


_KERAS_3_FIT = re.compile(
    r"unsupported type \(<class 'tensorflow\.python\.distribute\.values\.PerReplica'>\) to a Tensor"
)
"""The error of Keras 3's fit on every worker under MultiWorkerMirroredStrategy (Keras 3.15, TensorFlow 2.21)."""


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

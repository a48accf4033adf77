"""``metaflow.plugins.deepspeed_libs.executor``, as flows written for metaflow-deepspeed import it."""

from __future__ import annotations

from ...core.legacy_names import note_move
from ...launchers.deepspeed.launcher import DeepspeedExecutor

__all__ = ["DeepspeedExecutor"]

note_move(
    "metaflow.plugins.deepspeed_libs.executor",
    "metaflow_extensions.gang.launchers.deepspeed.launcher, or current.deepspeed in a step with @deepspeed",
)

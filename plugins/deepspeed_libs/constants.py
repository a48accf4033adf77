"""``metaflow.plugins.deepspeed_libs.constants``, as flows written for metaflow-deepspeed import it."""

from __future__ import annotations

from ...core.legacy_names import note_move
from ...launchers.deepspeed.constants import DEEPSPEED_SUFFIX

__all__ = ["DEEPSPEED_SUFFIX"]

note_move(
    "metaflow.plugins.deepspeed_libs.constants",
    "metaflow_extensions.gang.launchers.deepspeed.constants, or the location that "
    "current.deepspeed.run(push_results_dir_to_cloud=True) returns",
)

"""``metaflow.plugins.deepspeed_libs.exceptions``, as flows written for metaflow-deepspeed import it."""

from __future__ import annotations

from ...core.moved import note_move
from ...core.objects import ObjectNotFound
from ...launchers.deepspeed.failure import DeepspeedException

__all__ = ["DatastoreKeyNotFoundError", "DeepspeedException"]

note_move(
    "metaflow.plugins.deepspeed_libs.exceptions",
    "metaflow_extensions.gang.launchers.deepspeed.failure (DeepspeedException) and "
    "metaflow_extensions.gang.core.objects (ObjectNotFound)",
)

DatastoreKeyNotFoundError = ObjectNotFound

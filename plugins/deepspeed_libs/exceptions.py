"""``metaflow.plugins.deepspeed_libs.exceptions``, as flows written for metaflow-deepspeed import it."""

from __future__ import annotations

from ...core.legacy_names import note_move
from ...core.storage.objects import ObjectNotFound
from ...launchers.deepspeed.exceptions import DeepspeedException

__all__ = ["DatastoreKeyNotFoundError", "DeepspeedException"]

note_move(
    "metaflow.plugins.deepspeed_libs.exceptions",
    "metaflow_extensions.gang.launchers.deepspeed.exceptions (DeepspeedException) and "
    "metaflow_extensions.gang.core.storage.objects (ObjectNotFound)",
)

DatastoreKeyNotFoundError = ObjectNotFound

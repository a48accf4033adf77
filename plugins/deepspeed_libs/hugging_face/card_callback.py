"""``metaflow.plugins.deepspeed_libs.hugging_face.card_callback``, as flows written for metaflow-deepspeed import it."""

from __future__ import annotations

from ....core.legacy_names import note_move

# The class is loaded when it is asked for; where transformers is missing, the import of its name says so.
from ....launchers.huggingface.lazy import __dir__ as __dir__
from ....launchers.huggingface.lazy import __getattr__ as __getattr__

note_move(
    "metaflow.plugins.deepspeed_libs.hugging_face.card_callback",
    "metaflow.huggingface_card_callback",
)

"""What ``metaflow.huggingface_card_callback`` is: the callback's module, loaded when a name of it is asked for.

Metaflow makes an alias of every module that it finds in our toplevel, and imports that module with itself; the callback
imports transformers, which takes seconds and which most flows have not.
"""

from __future__ import annotations

import importlib
from typing import Any

_PACKAGE = __package__  # Metaflow's alias changes this module's own attributes.
_NAMES = ("MetaflowHuggingFaceCardCallback",)


def __getattr__(name: str) -> Any:
    """A name of the callback's module. Raises ImportError where transformers is missing."""
    if name not in _NAMES:
        raise AttributeError(f"metaflow.huggingface_card_callback has no {name!r}; it has {', '.join(_NAMES)}.")
    return getattr(importlib.import_module(".callback", _PACKAGE), name)


def __dir__() -> list[str]:
    return list(_NAMES)

"""Variables METAFLOW_GANG_... that nobody reads: a misspelt setting would have no effect, without any message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ..logs import say
from .table import ALL

PREFIX = "METAFLOW_GANG_"

_NAMES = (
    "CONTROL_OF",
    "FOLDER",
    "GPU_SHARES",
    "ID",
    "LAUNCH",
    "LOG_FILE",
    "MEETING",
    "NUMBERED",
    "RECORD",
    "SCRATCH",
    "STEP",
    "TRACES",
)

OWN = frozenset(f"{PREFIX}{name}" for name in _NAMES)
"""Those that this package sets itself, for its tasks and what they start."""

_told: set[str] = set()


def unknown_settings(names: Iterable[str]) -> list[str]:
    """A sentence for each of ``names`` that begins as a setting and is none."""
    known = [setting.variable for setting in ALL]
    found = []
    for name in sorted(names):
        if name.startswith(PREFIX) and name not in known and name not in OWN:
            # Without what all of them have in common: it would make any two alike.
            ends = [variable.removeprefix(PREFIX) for variable in known]
            near = difflib.get_close_matches(name.removeprefix(PREFIX), ends, n=1, cutoff=0.7)
            hint = f"Did you mean {PREFIX}{near[0]}?" if near else "docs/settings.md has all of them."
            found.append(f"{name} is no setting, and has no effect. {hint}")
    return found


def tell_unknown_settings(names: Iterable[str]) -> None:
    """Say so, once in this process for each."""
    for sentence in unknown_settings(names):
        if sentence not in _told:
            _told.add(sentence)
            say(sentence)

"""Older names that keep working: those of an older package, with a note to the user, and those of moved modules."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

from .metaflow_compat.configuration import loads_extensions


def note_move(old: str, new: str) -> None:
    """Warns, at the user's line, that a name is an older package's. For the body of the module that has that name.

    A module's body runs once, so each process is told once of each name. Python shows the note by itself where the line
    is in the program that was started, as a flow's file is in its tasks.

    Parameters
    ----------
    old : str
        The name, e.g. "metaflow.plugins.deepspeed_libs.executor".
    new : str
        What to use instead, e.g. "metaflow_extensions.gang.launchers.deepspeed.launcher".
    """
    frame = sys._getframe(2)
    while frame.f_back is not None and _is_machinery(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    # Not warnings.warn(): it would have to be told how many frames to pass over, which is not the same everywhere.
    warnings.warn_explicit(
        f"{old} is a name of the package metaflow-deepspeed, kept for flows written for it. Use instead: {new}.",
        DeprecationWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def keep_module(package: str, old: str, new: str) -> None:
    """Have a module of ``package`` be found by its old name, too; the module is loaded when something of it is wanted.

    Parameters
    ----------
    package : str
        The dotted name of the package, whose ``__init__.py`` calls this.
    old, new : str
        Names within the package.
    """
    sys.modules[f"{package}.{old}"] = _Moved(f"{package}.{old}", f"{package}.{new}")


class _Moved(ModuleType):
    """A module's old name."""

    def __init__(self, name: str, now: str) -> None:
        super().__init__(name, f"The older name of {now}.")
        self._now = now

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system's questions
            raise AttributeError(name)
        return getattr(importlib.import_module(self._now), name)


def _is_machinery(module: str) -> bool:
    """Whether a module stands between the line that imports another module and that module's body."""
    return f"{module}.".startswith("importlib.") or loads_extensions(module)

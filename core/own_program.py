"""A program of this package for a guard to start: it has Metaflow, and stores or reports what the task cannot."""

from __future__ import annotations

import os
import sys
from typing import Any


def own_program(module: str, *arguments: str, function: str = "main") -> dict[str, Any]:
    """How a process is started that calls ``function`` of ``module`` with the last of its arguments: by this task's
    interpreter, in its environment and folder.

    Metaflow is imported first: it loads this package by itself, and must not be asked to half-way.
    """
    code = f"import sys, metaflow, importlib; importlib.import_module({module!r}).{function}(sys.argv[-1])"
    return {"argv": [sys.executable, "-c", code, *arguments], "env": dict(os.environ), "cwd": os.getcwd()}

"""Counts lines in the processes that coverage cannot reach: guards and runners, which are started as ``python -I -S``.

A coverage plugin, which `make coverage` copies into its virtual environment, so that it is loaded wherever coverage
has started: in pytest, and in Metaflow's tasks through coverage's own ``patch = ["subprocess"]``. It changes the
command line of every isolated Python started there, so that this file runs first and starts coverage by itself. The
product knows nothing of it, and the children of a guard have the environment that they were meant to have.
"""

from __future__ import annotations

import os
import subprocess
import sys
import types
from typing import Any

ISOLATED = ["-I", "-S"]
CONFIG = "COVERAGE_PROCESS_CONFIG"

own_config = ""
"""In an isolated process, where the environment does not hold it: coverage's configuration."""


class Plugin:
    """What coverage wants to see of a plugin that only configures."""

    _coverage_plugin_name = "guard_coverage"
    _coverage_enabled = True

    def configure(self, config: object) -> None:
        """Nothing to change."""


def coverage_init(reg: Any, options: dict[str, str]) -> None:
    """Called by coverage, once in each process that it measures."""
    start = subprocess.Popen.__init__

    def covered_start(self: subprocess.Popen[Any], args: Any, *more: Any, **options: Any) -> None:
        config = own_config or os.environ.get(CONFIG)
        if config and isinstance(args, (list, tuple)) and list(args[1:3]) == ISOLATED:
            args = [args[0], *ISOLATED, __file__, config, *args[3:]]
        start(self, args, *more, **options)

    subprocess.Popen.__init__ = covered_start  # type: ignore[method-assign]
    reg.add_configurer(Plugin())


def main(config: str, argv: list[str]) -> None:
    """Start coverage, then do what Python would have done with ``argv``: ``-c CODE ARG...`` or ``FILE ARG...``."""
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    import coverage
    import guard_coverage

    guard_coverage.own_config = config
    had = os.environ.get(CONFIG)
    os.environ[CONFIG] = config
    coverage.process_startup()
    if had is None:
        del os.environ[CONFIG]
    if argv[0] == "-c":
        code, name, sys.argv = argv[1], "<string>", ["-c", *argv[2:]]
    else:
        with open(argv[0], encoding="utf-8") as file:
            code = file.read()
        name, sys.argv = argv[0], argv
    module = types.ModuleType("__main__")
    module.__file__ = name
    sys.modules["__main__"] = module
    exec(compile(code, name, "exec"), module.__dict__)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

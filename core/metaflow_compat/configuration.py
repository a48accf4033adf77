"""Metaflow's configuration, and the command line that Metaflow was started with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from .lookup import imported

CONTROL = "ubf_control"
"""The word on the command line of control's task."""


def configured(name: str) -> Any:
    """The setting METAFLOW_<name>: the environment variable, else the entry of a configuration file; None without."""
    return imported("metaflow.metaflow_config_funcs", "from_conf", "read its settings (METAFLOW_GANG_...)")(name)


def command_words() -> list[str]:
    """The words of Metaflow's command ("run", "argo-workflows create"); empty where they cannot be known.

    Decorators are asked before the command is looked into, and only Metaflow's own copy of click has its words.
    """
    click = imported("metaflow._vendor.click", "get_current_context", "learn which scheduler a flow is deployed to")
    return list(getattr(click(silent=True), "saved_args", None) or [])


def is_step_of_a_foreach() -> bool:
    """Whether this process is the command of a task of a parallel step, known also while the flow file is loaded."""
    return "--ubf-context" in sys.argv


def is_control_command() -> bool:
    """Whether it is that of control's task."""
    return CONTROL in sys.argv


def waits_for_a_backend() -> bool:
    """Whether this process is ``flow.py ... kubernetes step ...`` and no task of its own."""
    at = sys.argv.index("step") if "step" in sys.argv else 0
    return at > 0 and sys.argv[at - 1] in ("batch", "kubernetes", "slurm")


def attempt_in(argv: Sequence[str]) -> str | None:
    """RUN/STEP/TASK/ATTEMPT, read from the command line of ``flow.py ... step NAME ...``; None where it is another
    command.
    """
    words = list(argv)
    if "step" not in words[:-1]:
        return None
    at = words.index("step")
    options = {name: value for name, value in pairwise(words[at + 2 :]) if name.startswith("--")}
    run, task = options.get("--run-id"), options.get("--task-id")
    return f"{run}/{words[at + 1]}/{task}/{options.get('--retry-count', '0')}" if run and task else None


def has_read_the_flow() -> bool:
    """Whether the flow file has come as far as its last line, which starts Metaflow's command."""
    return "metaflow.cli" in sys.modules


def loads_extensions(module: str) -> bool:
    """Whether module ``module`` is a part of what stands between a line that imports an extension and its module."""
    return f"{module}.".startswith("metaflow.extension_support.")

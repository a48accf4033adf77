"""The command ``flow.py BACKEND step ...`` that a run starts in place of a task, and the task's own command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from ...core.metaflow_compat.lookup import imported, member

_PURPOSE = "start a task's command by a backend"

click: Any = imported("metaflow._vendor", "click", _PURPOSE)
"""Metaflow's own copy, of which its commands are."""

NO_RETRY: int = imported("metaflow.exception", "METAFLOW_EXIT_DISALLOW_RETRY", _PURPOSE)
"""The exit status of a command whose task is not to be tried again."""

LONGEST_S: int = imported("metaflow.metaflow_config", "DEFAULT_RUNTIME_LIMIT", _PURPOSE)
"""Seconds: what Metaflow takes for the limit of a step without @timeout."""

FOR_THE_TASK = (
    "run_id",
    "input_paths",
    "clone_path",
    "clone_run_id",
    "tag",
    "namespace",
    "retry_count",
    "max_user_code_retries",
)
"""Options of a backend's ``step`` that the task's own ``step`` gets unchanged."""

OF_THE_PLACE = ("task_id", "split_index", "ubf_context")
"""Those that a gang's nodes have each for itself."""


def options() -> list[Any]:
    """The options that Metaflow gives to the ``step`` of each backend."""
    names = (*FOR_THE_TASK, *OF_THE_PLACE)
    given = [click.Option([f"--{name.replace('_', '-')}"], multiple=name == "tag") for name in names]
    return [
        *(click.Argument([name]) for name in ("step_name", "code_metadata", "code_sha", "code_url")),
        *given,
        click.Option(["--num-parallel"], type=int, default=0),
        click.Option(["--run-time-limit"], type=int, default=LONGEST_S),
    ]


def words(given: Mapping[str, Any]) -> list[str]:
    """Options as the words of a command line."""
    lines = imported("metaflow.util", "dict_to_cli_options", _PURPOSE)(dict(given))
    return [word for line in lines for word in shlex.split(str(line))]


def run_time_limit(decorators: list[Any]) -> int:
    """Seconds that the step's @timeout gives it; :data:`LONGEST_S` without one."""
    found = imported("metaflow.plugins.timeout_decorator", "get_run_time_limit_for_task", _PURPOSE)
    return int(found(decorators))


def resources(decorators: list[Any], decorator: Any, wanted: tuple[str, ...]) -> dict[str, Any]:
    """The larger of what @resources and the backend's decorator ask for, by the names in ``wanted``."""
    module = "metaflow.plugins.aws.aws_utils"
    merge = imported(module, "compute_resource_attributes", "merge @resources with a backend's attributes")
    found = merge(decorators, decorator, dict.fromkeys(wanted))
    return {name: value for name, value in found.items() if name in wanted}


def user_name() -> str:
    """Who runs the flow."""
    return str(imported("metaflow.util", "get_username", _PURPOSE)())


def context_of_group(context: Any) -> Mapping[str, Any]:
    """The options that stand before the backend's command: those of the flow."""
    found: Mapping[str, Any] = context.parent.parent.params
    return found


def context_of_node(node: int) -> str:
    """The ``ubf_context`` of a gang's node: node 0 is control."""
    name = "UBF_TASK" if node else "UBF_CONTROL"
    return str(imported("metaflow.unbounded_foreach", name, _PURPOSE))


def interpreter(environment: Any, step: str, chosen: str) -> str:
    """The Python of a step: that of its environment (@conda, @pypi), or ``chosen``."""
    return str(member(environment, "executable", "an environment", _PURPOSE)(step, chosen))

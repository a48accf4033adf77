"""A task of a parallel step: how many nodes there are, its command, what ``current`` has, and what its id says."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from metaflow import current

from .lookup import imported, member

_OTHER_NODES = (
    (re.compile(r"(.+)_node_(\d+)"), "{}", 0),  # local, AWS Batch, Slurm
    (re.compile(r"(.+)-worker-(\d+)"), "{}", 1),  # Kubernetes, which counts without control
    (re.compile(r"worker-(.+)-(\d+)"), "control-{}-0", 1),  # Argo Workflows
)
"""The ids of the tasks of nodes other than 0, that of control's task, and the index of the first of them."""


def place_of_task(task_id: str) -> tuple[str, int]:
    """The id of control's task, and the index of the node, as the id of a gang's task says.

    Example
    -------
    ``place_of_task("3_node_1") == ("3", 1)``
    """
    for pattern, control, first in _OTHER_NODES:
        if match := pattern.fullmatch(task_id):
            return control.format(match[1]), int(match[2]) + first
    return task_id, 0


def num_nodes(flow: Any, spun: bool) -> int:
    """How many nodes the running step has: ``num_parallel`` of the step before; 0 where that has named none, which
    leaves the flow without the attribute. A task of ``spin``, which is alone, is ``spun``.
    """
    if spun:
        return 1
    split = getattr(flow, "_parallel_ubf_iter", None)
    if split is None:
        return 0
    return int(member(split, "num_parallel", "a parallel step's split", "learn how many nodes a gang has"))


def foreach_depth(flow: Any) -> int:
    """In how many foreach splits the running task is, that of the nodes included."""
    return len(member(flow, "_foreach_stack", "a flow", "tell the gangs of a foreach from each other") or ())


def joined_tasks(flow: Any) -> list[str]:
    """RUN/STEP/TASK of each node, in their order, which the join step will get; empty where no backend has set it.

    Metaflow gives a flow this attribute when it is set, and reads it of control's task.
    """
    return list(getattr(flow, "_control_mapper_tasks", None) or [])


def set_joined_tasks(flow: Any, tasks: list[str]) -> None:
    """Say which tasks the join step gets."""
    flow._control_mapper_tasks = tasks


def appear_on_current(members: Mapping[str, object]) -> None:
    """Give ``metaflow.current`` these attributes."""
    member(current, "_update_env", "metaflow.current", "put the gang on current")(dict(members))


def command_of_node(step: str, options: Mapping[str, Any]) -> list[str]:
    """The command of another node's task, its interpreter left out: that of this task, with other options.

    Parameters
    ----------
    step : str
    options : mapping
        Of the ``step`` command, by the names of their parameters.
    """
    purpose = "start the other nodes of a local gang"
    cli_args = imported("metaflow.cli_args", "cli_args", purpose)
    context = imported("metaflow.unbounded_foreach", "UBF_TASK", purpose)
    known = member(cli_args, "step_kwargs", "metaflow.cli_args.cli_args", purpose)
    command = member(cli_args, "step_command", "metaflow.cli_args.cli_args", purpose)
    kwargs = {**known, "ubf_context": context, **options}
    return [str(word) for word in command("", sys.argv[0], step, step_kwargs=kwargs)[1:]]

"""Local gangs: the environment, the commands and the logs of node tasks that node 0's guard starts on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .. import logs, metadata
from ..exceptions import BadAttribute
from ..guard.processes.process_table import GANG_MARKER
from ..machine.gpus import TooFewGpus, share_gpus, visible_gpus
from ..metaflow_compat import environment
from ..metaflow_compat.tasks import command_of_node
from ..own_program import own_program
from .task_info import TaskInfo

CONTROL_MARKER = "METAFLOW_GANG_CONTROL_OF"
"""Set in the environment of each gang's control task to the id of the run's process."""

MEETING_VARIABLE = "METAFLOW_GANG_MEETING"
"""The number of the descriptor from which another node's task reads address and secret; never the secret itself."""

SHARES_VARIABLE = "METAFLOW_GANG_GPU_SHARES"
"""From the run to node 0's task, as JSON: CUDA_VISIBLE_DEVICES of each node, and a notice for the user. Node 0's task
sees only its own share, and so cannot compute them itself.
"""


def is_of_a_run(task_id: str) -> bool:
    """Whether a run started this control task. Programs of its body have the same variables, but another task id."""
    return CONTROL_MARKER in os.environ and environment.control_task("") == task_id


def gang_id(task_id: str) -> str:
    """The id of this control task's gang: the one from the run, or a new one where the task was started by hand.

    It is in the task's environment from its start, so that everything that the task forks has it.
    """
    if is_of_a_run(task_id):
        return os.environ[GANG_MARKER].rpartition(".")[0]
    return secrets.token_hex(8)


def task_ids(control_task: str, num_nodes: int) -> list[str]:
    """The ids of all nodes' tasks, as Metaflow names them locally."""
    return [control_task, *(f"{control_task}_node_{node}" for node in range(1, num_nodes))]


def read_meeting() -> bytes:
    """In another node's task: read where to join from the pipe of node 0's guard, and close the pipe."""
    with os.fdopen(int(os.environ.pop(MEETING_VARIABLE)), "rb") as pipe:
        return pipe.read()


def write_whole_lines() -> None:
    """In node 0's task: write each line in one piece, since the guard writes other nodes' output to the same streams.

    Metaflow runs tasks unbuffered, and an unbuffered ``print`` writes a line's end separately.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # replaced by something that is no text stream
            stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]


def control_environment(
    num_nodes: int, requested_gpus: int | None, control_task: str, gang_id: str, environ: Mapping[str, str]
) -> dict[str, str]:
    """In the run's process: the variables of node 0's task, so that it knows its place in the gang from its start.

    Nodes on a cluster do, and decorators and modules of the flow file use it before the gang forms.

    Parameters
    ----------
    environ : mapping
        The task's other variables; they may choose GPUs.
    """
    variables = {**environment.place(0, num_nodes, control_task), GANG_MARKER: f"{gang_id}.0"}
    try:
        shares = share_gpus(visible_gpus(environ), num_nodes, requested_gpus)
    except TooFewGpus:
        return variables  # the task finds it out again, and fails in its own name
    own = shares.values[0]
    if own is not None:
        variables["CUDA_VISIBLE_DEVICES"] = own
        variables[SHARES_VARIABLE] = json.dumps({"values": shares.values, "notice": shares.notice})
    return variables


def node_environments(
    num_nodes: int, requested_gpus: int | None, control_task: str, gang_id: str
) -> list[dict[str, str]]:
    """The variables of each node's task besides node 0's environment: its place, and its share of the GPUs.

    Raises
    ------
    BadAttribute
        When the machine has fewer GPUs than the nodes ask for.
    """
    values, notice = _gpu_shares(num_nodes, requested_gpus)
    if notice:
        logs.say(notice)
    environments = []
    for node, visible in enumerate(values):
        variables = {**environment.place(node, num_nodes, control_task), GANG_MARKER: f"{gang_id}.{node}"}
        if visible is not None:
            variables["CUDA_VISIBLE_DEVICES"] = visible
        environments.append(variables)
    return environments


def _gpu_shares(num_nodes: int, requested: int | None) -> tuple[Sequence[str | None], str]:
    """Each node's CUDA_VISIBLE_DEVICES and a notice: the run's, unless another decorator has chosen GPUs since."""
    given = json.loads(os.environ.pop(SHARES_VARIABLE, "{}"))
    if len(given.get("values", ())) == num_nodes and os.environ.get("CUDA_VISIBLE_DEVICES") == given["values"][0]:
        return given["values"], given["notice"]
    try:
        shares = share_gpus(visible_gpus(), num_nodes, requested)
    except TooFewGpus as error:
        raise BadAttribute(str(error)) from None
    return shares.values, shares.notice


def node_tasks(
    task: TaskInfo, input_paths: Sequence[str], environments: Sequence[dict[str, str]]
) -> list[dict[str, Any]]:
    """The commands of the other nodes' tasks, for the guard: node 0's command, with their own ids.

    The interpreter is node 0's, which the run has chosen: the one that runs the flow, or that of the step's @conda or
    @pypi. An environment's ``executable()`` is for machines on which Metaflow has installed it, and may be several
    words, as uv's is.
    """
    tasks = []
    for node, task_id in enumerate(task_ids(task.task_id, len(environments))):
        options = {
            "split_index": str(node),
            "run_id": task.run_id,
            "task_id": task_id,
            "input_paths": ",".join(input_paths),
            "input_paths_filename": None,
            "retry_count": str(task.attempt),
        }
        argv = [sys.executable, *command_of_node(task.step_name, options)]
        tasks.append({"node": node, "argv": argv, "env": {**os.environ, **environments[node]}, "cwd": os.getcwd()})
    return tasks[1:]


def log_paths(folder: str, num_nodes: int) -> dict[str, dict[str, str]]:
    """The files in which node 0's guard keeps the other nodes' output, by node index and stream."""
    streams = ("stdout", "stderr")
    return {str(n): {s: os.path.join(folder, f"node-{n}.{s}") for s in streams} for n in range(1, num_nodes)}


def log_saver(
    flow_datastore: Any, task: TaskInfo, num_nodes: int, folder: str, limit: int, registers: dict[str, Any]
) -> dict[str, Any]:
    """The command that stores the other nodes' logs, and the failure, when this task cannot; for the guard.

    Parameters
    ----------
    limit : int
        Bytes of each stream that are stored.
    registers : dict
        :meth:`.metadata.TaskMetadata.spec`.
    """
    left = os.path.join(folder, "left.json")
    nodes = [str(node) for node in range(1, num_nodes)]
    spec = {
        **registers,
        "left": left,
        "datastore": flow_datastore.TYPE,
        "root": flow_datastore.datastore_root,
        "flow": task.flow_name,
        "run": task.run_id,
        "step": task.step_name,
        "attempt": task.attempt,
        "logs": log_paths(folder, num_nodes),
        "limit": limit,
        "task_ids": dict(zip(nodes, task_ids(task.task_id, num_nodes)[1:], strict=True)),
    }
    path = os.path.join(folder, "log-saver.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(spec, file)
    return {**own_program(metadata.__name__, path), "left": left}

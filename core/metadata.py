"""What a gang leaves as Metaflow's metadata of its tasks, as JSON, so that programs can ask why a step failed.

gang-failure    the first failure, the same on every node's task; see :meth:`.guard.failure_record.Failure.as_data`
gang-phases     when the phases of this node began; node 0's task has the first and the last node of each besides
gang-settings   the waits and limits that counted
gang-restarts   where ranks were started again: node 0's task has a line for each time, and when (epoch)
gang-left-out   of a node without which the gang went on: why; registered by node 0's task
gang-nodes      of node 0's task: which nodes were left out, waited as spare ones or took other places, and since when
gang-traces     of a node whose ranks have written traces of torch's profiler: where they are, and which

What shows a gang while it runs gets the same values from the guard; see :class:`.guard.phases.NodePhases`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from . import logs
from .guard.secret_values import cleaned, secrets_of
from .metaflow_compat import metadata

FAILURE, PHASES, SETTINGS, RESTARTS = "gang-failure", "gang-phases", "gang-settings", "gang-restarts"
LEFT_OUT, NODES, TRACES = "gang-left-out", "gang-nodes", "gang-traces"


def as_values(data: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Each value as JSON without secrets, which an exception may quote."""
    secrets = secrets_of(environ)
    return {name: json.dumps(cleaned(value, secrets), sort_keys=True) for name, value in data.items()}


class TaskMetadata:
    """Registers metadata of the tasks of one step.

    Parameters
    ----------
    provider : MetadataProvider or None
        None where there is none: nothing is registered then.

    Attributes
    ----------
    of_nodes : list of str
        On node 0: the ids of all nodes' tasks.
    """

    def __init__(self, provider: Any, run_id: str, step: str, task_id: str, attempt: int) -> None:
        self._provider, self._run_id, self._step = provider, run_id, step
        self._task_id, self._attempt = task_id, attempt
        self.of_nodes: list[str] = []

    def register(self, data: Mapping[str, Any], task_id: str = "") -> None:
        """Register ``data``, JSON values by name, for this task or another one of its step.

        What a provider raises is only logged: the step's own result matters more.
        """
        if self._provider is None or not data:
            return
        values = as_values(data, os.environ)
        try:
            metadata.register(self._provider, self._run_id, self._step, task_id or self._task_id, self._attempt, values)
        except Exception as error:
            logs.say(f"{', '.join(values)} could not be registered as metadata: {type(error).__name__}: {error}")

    def register_record(self, record: Mapping[str, Any]) -> None:
        """Register what a guard replies to the request ``record``, for this task and for those that were left out."""
        self.register(of_record(record))
        for node, why in record["left_out"].items():
            self.register({LEFT_OUT: why}, self.of_nodes[int(node)])

    def spec(self) -> dict[str, Any]:
        """What another process needs to do the same; see :func:`main`."""
        return {
            "metadata": metadata.kind(self._provider) if self._provider is not None else "",
            "control_task": self._task_id,
        }


def of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of what a guard replies to the request ``record``."""
    phases = record["phases"]
    found = {PHASES: {**phases, "gang": record["gang"]} if record["gang"] else phases, SETTINGS: record["settings"]}
    told = {RESTARTS: record["restarts"], NODES: record["nodes"]}
    return {**found, **{name: value for name, value in told.items() if value}}


def main(spec_path: str) -> None:
    """In the place of a dead node 0 of a local gang: register what it cannot register any more, then store the logs.

    Parameters
    ----------
    spec_path : str
        The file of :func:`.logs.main`, with :meth:`TaskMetadata.spec`, and in ``left`` the path of what the guard has
        left, JSON: ``nodes``, whose tasks are dead; ``failure``; and ``record``.
    """
    with open(spec_path, encoding="utf-8") as file:
        spec = json.load(file)
    if spec["metadata"] and os.path.exists(spec["left"]):
        with open(spec["left"], encoding="utf-8") as file:
            left = json.load(file)
        tasks = {0: spec["control_task"], **{int(node): task for node, task in spec["task_ids"].items()}}
        try:
            provider = metadata.open_provider(spec["metadata"], spec["flow"])
        except Exception as error:  # the logs are stored all the same
            logs.say(f"{FAILURE} could not be registered as metadata: {type(error).__name__}: {error}")
        else:
            for node in left["nodes"]:
                task = TaskMetadata(provider, spec["run"], spec["step"], tasks[node], spec["attempt"])
                task.of_nodes = [tasks[index] for index in sorted(tasks)]
                task.register({FAILURE: left["failure"]})
                if node == 0:
                    task.register_record(left["record"])
    logs.main(spec_path)

"""What is to be exported of a node's task: the metrics file, and OpenTelemetry's metrics, where a site wants them."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from ..rendezvous.task_info import TaskInfo
from ..settings.table import METRICS_FILE
from . import otlp

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def exports(task: TaskInfo, launcher: str, node: int, is_local: bool, cpus: int) -> dict[str, Any] | None:
    """The guard's request "export"; None where nothing is to be exported, and nothing is imported then.

    Parameters
    ----------
    launcher : str
        The decorator, as the user writes it: "@torchrun".
    is_local : bool
        Whether the nodes of the gang are processes of one machine.
    cpus : int
        Processors of the node.

    Raises
    ------
    BadAttribute
        METAFLOW_GANG_METRICS_FILE is not valid.
    """
    path = METRICS_FILE.read()
    with_otlp = wants_otlp(os.environ)
    if not path and not with_otlp:
        return None
    pathspec = f"{task.flow_name}/{task.run_id}/{task.step_name}/{task.task_id}"
    resource = {
        "metaflow.flow": task.flow_name,
        "metaflow.run_id": task.run_id,
        "metaflow.step": task.step_name,
        "metaflow.task_id": task.task_id,
        "metaflow.attempt": task.attempt,
        "gang.node": node,
        "gang.launcher": launcher,
        "host.name": socket.gethostname(),
    }
    own = {**resource, "service.instance.id": f"{pathspec}/{task.attempt}"}
    program = {"argv": [sys.executable, otlp.__file__, json.dumps(own)], "env": dict(os.environ), "cwd": os.getcwd()}
    return {
        "resource": resource,
        "cpus": cpus,
        "file": file_of_node(path, task, node, is_local) if path else "",
        "program": program if with_otlp else None,
    }


def file_of_node(path: str, task: TaskInfo, node: int, is_local: bool) -> str:
    """The setting with the placeholders filled in. Nodes of one machine get names of their own in any case."""
    values = {"flow": task.flow_name, "run": task.run_id, "step": task.step_name, "task": task.task_id, "node": node}
    if is_local and node and not any(place in path for place in ("{node}", "{task}")):
        head, suffix = os.path.splitext(path)
        path = f"{head}-node{{node}}{suffix}"
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", str(value).replace(os.sep, "_"))
    return os.path.abspath(path)


def wants_otlp(environ: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables ask for metrics by OTLP, and its SDK is installed."""
    if not any(environ.get(name) for name in _ENDPOINTS) or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if "otlp" not in environ.get("OTEL_METRICS_EXPORTER", "otlp").replace(" ", "").split(","):
        return False
    try:
        return importlib.util.find_spec("opentelemetry.sdk.metrics") is not None
    except (ImportError, ValueError):
        return False

"""The debug logs of the guards (METAFLOW_GANG_DEBUG), stored beside the logs of their tasks where a step fails.

Run as a program (``main(SPEC)``) it stores the log of a task that is dead, for the guard.
"""

from __future__ import annotations

import json
import os
from io import FileIO
from typing import Any

from .exceptions import MetaflowChanged
from .guard.debug_log import NAME, SAVER_SPEC
from .logs import say
from .metaflow_compat.datastores import datastore_of_task, open_flow_datastore
from .metaflow_compat.task_logs import save_another_log
from .own_program import own_program

SOURCE, STREAM = "gang", "debug"
"""Metaflow stores it as ``<attempt>.gang_debug.log``."""

_READ = {"local": "cat %s", "s3": "aws s3 cp %s -", "gs": "gcloud storage cat %s"}
"""How the file is read, by the kind of the datastore."""


class DebugLogs:
    """The debug log of one task's guard.

    Parameters
    ----------
    flow_datastore : FlowDataStore
    task : dict
        Which task: "flow", "run", "step", "task", "attempt", as Metaflow names them.
    node : int
    folder : str
        The node's private folder.
    """

    def __init__(self, flow_datastore: Any, task: dict[str, Any], node: int, folder: str) -> None:
        self._flow_datastore, self._task, self._node, self._folder = flow_datastore, task, node, folder

    def announce(self) -> None:
        """Say where the log is while the gang lives."""
        say(f"The debug log of node {self._node}'s guard is {self._path} (METAFLOW_GANG_DEBUG).")

    @property
    def _path(self) -> str:
        return os.path.join(self._folder, NAME)

    def saver(self) -> dict[str, Any]:
        """The command that stores the log when the task cannot, for the guard."""
        spec = os.path.join(self._folder, SAVER_SPEC)
        record = {
            "datastore": self._flow_datastore.TYPE,
            "root": self._flow_datastore.datastore_root,
            "node": self._node,
            "task": self._task,
        }
        with open(spec, "w", encoding="utf-8") as file:
            json.dump(record, file)
        return own_program(__name__, spec)

    def store(self) -> str:
        """Store the log as it is now; a sentence for the user that says where, or "" where there is no log."""
        try:
            with FileIO(self._path) as content:
                task = self._task
                names = (task["run"], task["step"], task["task"], task["attempt"])
                datastore = datastore_of_task(self._flow_datastore, *names)
                where = save_another_log(datastore, SOURCE, STREAM, content)
        except FileNotFoundError:
            return ""
        except Exception as error:  # whatever a datastore raises: the step's own end says more than this log
            return f"The debug log of node {self._node}'s guard could not be stored: {type(error).__name__}: {error}"
        read = _READ.get(self._flow_datastore.TYPE)
        how = f" Read it with: {read % where}" if read else ""
        return f"The debug log of node {self._node}'s guard is stored in {where} (METAFLOW_GANG_DEBUG).{how}"


def main(spec_path: str) -> None:
    """Store the log beside which ``spec_path`` (JSON, see :meth:`DebugLogs.saver`) is."""
    with open(spec_path, encoding="utf-8") as file:
        spec = json.load(file)
    try:
        datastore = open_flow_datastore(spec["task"]["flow"], spec["datastore"], spec["root"])
        sentence = DebugLogs(datastore, spec["task"], spec["node"], os.path.dirname(spec_path)).store()
    except MetaflowChanged as error:
        raise SystemExit(f"[gang] {error}") from None
    if sentence:
        say(sentence)

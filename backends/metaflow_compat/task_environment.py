"""The environment variables of a task that a backend starts, and its log as Metaflow shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.metaflow_compat.configuration import configured
from ...core.metaflow_compat.lookup import imported, member
from ...core.settings.table import ALL

MAIN_ADDRESS = "MF_PARALLEL_MAIN_IP"
"""The variable for node 0's address, which is known on the job's nodes only."""


def settings() -> dict[str, str]:
    """Metaflow's settings that differ from its defaults, and those of gangs, from configuration files and variables, as
    variables.
    """
    found = imported("metaflow.metaflow_config_funcs", "config_values", "give a task the settings of its run")
    # Metaflow knows only those settings that this process has read already; gangs read theirs in their tasks.
    gangs = {one.variable: configured(one.variable.removeprefix("METAFLOW_")) for one in ALL}
    return {str(name): str(value) for name, value in [*gangs.items(), *found()] if value is not None}


def common(obj: Any, backend: str, user: str, code: Sequence[str], script: str, run_id: str) -> dict[str, str]:
    """The variables of every node of a job.

    Parameters
    ----------
    obj : object
        Of Metaflow's command line: the flow, its datastore, and so on.
    code : sequence
        The code package's metadata, sha and url.
    """
    datastore = obj.flow_datastore
    found = {
        "METAFLOW_RUNTIME_ENVIRONMENT": backend,
        "METAFLOW_CODE_METADATA": code[0],
        "METAFLOW_CODE_SHA": code[1],
        "METAFLOW_CODE_URL": code[2],
        "METAFLOW_CODE_DS": datastore.TYPE,
        "METAFLOW_DEFAULT_DATASTORE": datastore.TYPE,
        "METAFLOW_DEFAULT_METADATA": obj.metadata.TYPE,
        "METAFLOW_FLOW_FILENAME": script,
        "METAFLOW_RUN_ID": run_id,
        "METAFLOW_USER": user,
        "PYTHONUNBUFFERED": "x",
    }
    return found


def logs(pathspec: Sequence[str], attempt: str, datastore: Any, stdout: str, stderr: str) -> dict[str, str]:
    """The variables by which ``metaflow.mflog.save_logs`` stores a task's log."""
    return {
        "MF_PATHSPEC": "/".join(pathspec),
        "MF_ATTEMPT": attempt,
        "MF_DATASTORE": datastore.TYPE,
        "MF_DATASTORE_ROOT": str(member(datastore, "datastore_root", "a flow's datastore", "store a task's log")),
        "MFLOG_STDOUT": stdout,
        "MFLOG_STDERR": stderr,
    }


def shown_line(line: bytes, prefix: str) -> str:
    """A line of a task's log, as the run prints it."""
    refine = imported("metaflow.mflog.mflog", "refine", "show a task's log in its run")
    return bytes(refine(line, prefix=prefix.encode())).decode("utf-8", "replace").strip("\r\n")

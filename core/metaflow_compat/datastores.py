"""Metaflow's datastores: which there are, that of a flow or a task, and what stores bytes in one."""

from __future__ import annotations

from typing import Any

from .lookup import imported, member


def storages() -> dict[str, Any]:
    """The classes of all datastores that this Metaflow has, by their kinds ("local", "s3")."""
    found = imported("metaflow.plugins", "DATASTORES", "open a datastore by its kind")
    return {storage.TYPE: storage for storage in found}


def configured_root(storage: Any) -> str | None:
    """Where a datastore of this class is by Metaflow's configuration; None where that does not say."""
    purpose = "find a datastore's configured root"
    root = member(storage, "get_datastore_root_from_config", "a datastore", purpose)
    found: str | None = root(lambda sentence: None, create_on_absent=False)
    return found


def open_flow_datastore(flow_name: str, kind: str, root: str) -> Any:
    """The datastore of a flow where nothing of Metaflow runs yet, or any more.

    Parameters
    ----------
    kind : str
        "local", "s3", "azure" or "gs".
    root : str
        "" for the configured one.
    """
    opened = imported("metaflow.datastore", "FlowDataStore", "open a flow's datastore outside of its task")
    storage = storages()[kind]
    return opened(flow_name, None, storage_impl=storage, ds_root=root or configured_root(storage))


def storage_of_flow(flow_datastore: Any) -> Any:
    """What stores and loads bytes by key in a flow's datastore."""
    return member(flow_datastore, "_storage_impl", "a flow's datastore", "keep objects in a flow's datastore")


def datastore_of_running_flow(flow: Any) -> Any:
    """The flow's datastore, in its task and outside of every decorator."""
    purpose = "find the datastore of the running flow"
    return member(member(flow, "_datastore", "a flow", purpose), "parent_datastore", "a task's datastore", purpose)


def datastore_of_task(flow_datastore: Any, run_id: str, step: str, task_id: str, attempt: int) -> Any:
    """For writing: the datastore of another task than this one, done or not."""
    opened = member(flow_datastore, "get_task_datastore", "a flow's datastore", "store the logs of another node")
    return opened(run_id, step, task_id, attempt=attempt, mode="w", allow_not_done=True)

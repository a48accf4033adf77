"""Metaflow's metadata of a task: values by name, of one attempt, which ``Task(...).metadata_dict`` has."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from .lookup import changed, imported, member

_PURPOSE = "keep a gang's failure and phases as metadata of its tasks"


def register(provider: Any, run_id: str, step: str, task_id: str, attempt: int, values: Mapping[str, str]) -> None:
    """Add ``values`` to the metadata of an attempt of a task. Raises what the provider raises.

    Parameters
    ----------
    provider : MetadataProvider
        What the hook ``task_pre_step`` gets, or :func:`open_provider` gives.
    """
    datum = imported("metaflow.metadata_provider", "MetaDatum", _PURPOSE)
    tags = [f"attempt_id:{attempt}"]
    data = [datum(field=name, value=value, type=name, tags=tags) for name, value in values.items()]
    member(provider, "register_metadata", "a metadata provider", _PURPOSE)(run_id, step, task_id, data)


def kind(provider: Any) -> str:
    """The name of a provider's kind: "local", "service"."""
    return str(member(provider, "TYPE", "a metadata provider", _PURPOSE))


def open_provider(name: str, flow_name: str) -> Any:
    """The provider of this kind for a flow, where nothing of Metaflow runs yet, or any more.

    Raises
    ------
    MetaflowChanged
        There is no such kind.
    """
    for provider in imported("metaflow.plugins", "METADATA_PROVIDERS", _PURPOSE):
        if kind(provider) == name:
            environment = imported("metaflow.metaflow_environment", "MetaflowEnvironment", _PURPOSE)
            return provider(environment(None), SimpleNamespace(name=flow_name), None, None)
    raise changed(f"the metadata provider {name!r}", _PURPOSE)

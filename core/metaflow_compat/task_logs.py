"""How Metaflow stores what a task prints."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from .lookup import imported, member

_PURPOSE = "store what a node prints where Task(...).stdout finds it"


def save_own_logs(task_datastore: Any, streams: Mapping[str, Any]) -> None:
    """Store the streams of the task itself, as a backend does; each is a path or an open file."""
    source = imported("metaflow.mflog", "TASK_LOG_SOURCE", _PURPOSE)
    member(task_datastore, "save_logs", "a task's datastore", _PURPOSE)(source, streams)


def save_logs_of_run(task_datastore: Any, streams: Mapping[str, Any]) -> None:
    """Store the streams of a local task, as the run that started it does."""
    source = imported("metaflow.mflog", "RUNTIME_LOG_SOURCE", _PURPOSE)
    member(task_datastore, "save_logs", "a task's datastore", _PURPOSE)(source, streams)


def save_another_log(task_datastore: Any, source: str, name: str, content: Any) -> str:
    """Store ``content``, an open file, beside the logs of a task, as its log ``name`` of ``source``; returns where."""
    purpose = "store a debug log beside the logs of a task"
    member(task_datastore, "save_logs", "a task's datastore", purpose)(source, {name: content})
    return str(member(task_datastore, "get_log_location", "a task's datastore", purpose)(source, name))


def around_the_line(by_run: bool = True) -> tuple[bytes, bytes, bytes]:
    """What Metaflow writes before the time of a stored line, between that and its id, and after that.

    Parameters
    ----------
    by_run : bool
        Whether the run writes the line, as for local tasks, and not what a backend starts beside the task.
    """
    source = imported("metaflow.mflog", "RUNTIME_LOG_SOURCE" if by_run else "TASK_LOG_SOURCE", _PURPOSE)
    form = imported("metaflow.mflog.mflog", "ISOFORMAT", _PURPOSE)
    decorate = imported("metaflow.mflog.mflog", "decorate", _PURPOSE)
    moment = datetime(2000, 1, 2, 3, 4, 5, 6)
    sample = decorate(source, b"", now=moment, lineid=b"LINEID")
    before, _, rest = sample.partition(moment.strftime(form).encode())
    between, _, after = rest.partition(b"LINEID")
    return before, between, after

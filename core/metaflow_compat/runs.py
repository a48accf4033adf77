"""The process of the run: how it starts control's task, and how it reads what tasks print."""

from __future__ import annotations

from collections.abc import Callable
from io import BufferedReader
from typing import Any

from .lookup import imported, member

_SHOW = "show what the nodes print at once"


def started_task(cli_args: Any) -> tuple[str, int, dict[str, str]]:
    """Of control's task, which is about to be started: its id, how many nodes its gang has, and its environment, which
    may be changed.

    Parameters
    ----------
    cli_args : CLIArgs
        What the hook ``runtime_step_cli`` gets.
    """
    purpose = "start node 0 of a gang"
    task = member(cli_args, "task", "the command of a task", purpose)
    split = member(task, "ubf_iter", "a task of the run", purpose)
    nodes = int(member(split, "num_parallel", "a parallel step's split", purpose))
    environment: dict[str, str] = member(cli_args, "env", "the command of a task", purpose)
    return str(member(task, "task_id", "a task of the run", purpose)), nodes, environment


def replace_line_reader(wrap: Callable[[Callable[[Any, int], bool]], Callable[[Any, int], bool]]) -> None:
    """Put ``wrap(reader)`` in the place of what reads one line of a task's output, for all tasks of this process."""
    worker = imported("metaflow.runtime", "Worker", _SHOW)
    worker.read_logline = wrap(member(worker, "read_logline", "metaflow.runtime.Worker", _SHOW))


def output_of(worker: Any, fd: int) -> BufferedReader | None:
    """The buffer of a task's stream, by its descriptor; None where it is none of the usual kind."""
    reader, *_ = member(worker, "_logs", "metaflow.runtime.Worker", _SHOW).get(fd, (None,))
    return reader if isinstance(reader, BufferedReader) else None

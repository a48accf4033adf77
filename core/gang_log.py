"""``gang_log``: a rank's or a body's numbers for the card of its gang."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from .guard.samples.user_metrics import FILE_VARIABLE
from .metaflow_compat.environment import NODE_INDEX

_RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "HOROVOD_RANK")
"""Variables by which launchers tell a process its rank."""


def who() -> str:
    """This process: its rank where it has one, else "node 1"."""
    rank = next((os.environ[name] for name in _RANKS if name in os.environ), None)
    return rank if rank is not None else f"node {os.environ.get(NODE_INDEX, '0')}"


def gang_log(step: float, **values: Any) -> None:
    """Log numbers at a step of the training; the card of the gang draws a curve of each.

    It takes microseconds, never raises, and does nothing outside of a gang. A program without Python writes such a line
    itself into the file that ``METAFLOW_GANG_LOG_FILE`` names: ``{"rank": 3, "step": 10, "values": {"loss": 0.3}}``.

    Parameters
    ----------
    step : number
        Where on the axis.
    values : number
        By name. What has one element and is no number, such as a tensor or an array, is made one.

    Example
    -------
    >>> gang_log(step=step, loss=loss)
    """
    path = os.environ.get(FILE_VARIABLE)
    if not path:
        return
    with contextlib.suppress(OSError, TypeError, ValueError):
        numbers = {name: float(value) for name, value in values.items()}
        line = json.dumps({"rank": who(), "step": float(step), "values": numbers}) + "\n"
        # One write at the end of the file: lines of several ranks are never mixed.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

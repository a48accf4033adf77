"""What ranks and bodies log by ``gang_log``: lines in a file of the node's private folder, where the latest count."""

from __future__ import annotations

import json
import math
import os
from typing import Any

FILE_VARIABLE = "METAFLOW_GANG_LOG_FILE"
"""Names the file, in the environment of the body and of all that it starts."""

FILE = "metrics.jsonl"

MOST = 256
"""Pairs of a metric and a rank of one node; more of them are left out."""

MOST_NAME = 100
"""Characters of a metric's name, and of who has logged it."""

MOST_BYTES = 1 << 20
"""The file is emptied once it is as long. A line that comes at that very moment may be lost."""

_PIECE = 1 << 18


class UserMetrics:
    """Reads the file of one node.

    Attributes
    ----------
    latest : dict
        By metric and rank: the last step and value.
    """

    def __init__(self, folder: str) -> None:
        self.latest: dict[tuple[str, str], tuple[float, float]] = {}
        self._path = os.path.join(folder, FILE)
        self._position = 0

    def read(self) -> list[list[Any]]:
        """The latest ``[metric, rank, step, value]`` of each; at most a fraction of a second's work."""
        try:
            with open(self._path, "r+b", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                # Of much that is new only the end counts.
                self._position = max(self._position if self._position <= size else 0, size - _PIECE)
                file.seek(self._position)
                whole, newline, _ = file.read(_PIECE).rpartition(b"\n")
                self._position += len(whole) + len(newline)
                if self._position > MOST_BYTES:
                    file.truncate(0)
                    self._position = 0
        except OSError:
            whole = b""
        for line in whole.split(b"\n"):
            self._take(line)
        return [[name, who, *pair] for (name, who), pair in self.latest.items()]

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            who, step = str(record["rank"])[:MOST_NAME], float(record["step"])
            values = record["values"].items()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return
        for name, value in values:
            key = (str(name)[:MOST_NAME], who)
            is_number = isinstance(value, (int, float)) and math.isfinite(value) and math.isfinite(step)
            if is_number and (key in self.latest or len(self.latest) < MOST):
                self.latest[key] = (step, float(value))

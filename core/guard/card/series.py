"""Samples of many nodes in few bytes: one of 64 levels for each moment, on a time axis that all nodes share."""

from __future__ import annotations

import array
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..loop.framing import Header

LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
"""A level in one letter. 64 of them are finer than a line of a chart is high in pixels, and 1,024 nodes with 120
moments and five metrics stay below 650 kB."""

UNKNOWN = "."

MOMENTS = 120
"""Moments that a chart has at most: one for four pixels of its width."""

HOLD_S = 60.0
"""A value counts until the next one comes, for this long: nodes of a large gang send one in 20 s or so."""

PERCENT = 100.0


class History:
    """The metrics of all nodes over time.

    The axis has :data:`MOMENTS` moments of ``every`` seconds. Once it is full, each two become one.

    Parameters
    ----------
    start : float
        Seconds since the epoch at which the axis begins.
    every : float
        Seconds of a moment at first.
    percents : iterable of str
        Metrics whose scale ends at 100; that of another one ends at a round number above its highest value.
    """

    def __init__(self, num_nodes: int, start: float, every: float, percents: Iterable[str]) -> None:
        self.start, self.every = start, every
        self._num_nodes, self._percents = num_nodes, frozenset(percents)
        self._values: dict[str, list[array.array[float]]] = {}

    def add(self, at: float, node: int, metrics: dict[str, float]) -> None:
        """Take the metrics of one node at one time; of several in one moment the last counts."""
        index = math.floor((at - self.start) / self.every)
        if index < 0:
            return
        while index >= MOMENTS:
            self._halve()
            index = math.floor((at - self.start) / self.every)
        for name, value in metrics.items():
            rows = self._values.get(name)
            if rows is None:
                rows = self._values[name] = [array.array("f") for _ in range(self._num_nodes)]
            row = rows[node]
            row.extend([math.nan] * (index + 1 - len(row)))
            row[index] = value

    def _halve(self) -> None:
        self.every *= 2
        for rows in self._values.values():
            for node, row in enumerate(rows):
                rows[node] = array.array("f", (_mean(row[i : i + 2]) for i in range(0, len(row), 2)))

    def as_series(self) -> Header:
        """``start`` (epoch), ``every``, and in ``values`` for each metric its ``scale`` and each node's letters."""
        count = max((len(row) for rows in self._values.values() for row in rows), default=0)
        hold = math.ceil(HOLD_S / self.every)
        values: Header = {}
        for name, rows in self._values.items():
            highest = max((value for row in rows for value in row if value == value), default=0.0)
            scale = PERCENT if name in self._percents else round_scale(highest)
            values[name] = {"scale": scale, "nodes": [encoded(held(row, count, hold), scale) for row in rows]}
        return {"start": self.start, "every": self.every, "values": values}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else math.nan


def held(values: Sequence[float], count: int, most: int) -> list[float]:
    """``count`` values, where one counts for the next ``most`` moments too that have none."""
    found: list[float] = []
    last, age = math.nan, 0
    for index in range(count):
        value = values[index] if index < len(values) else math.nan
        if value == value:
            last, age = value, 0
        else:
            age += 1
        found.append(last if age <= most else math.nan)
    return found


def encoded(values: Iterable[float], scale: float) -> str:
    """Values between 0 and ``scale`` as letters; what is out of range counts as the nearest that is in it. NaN is
    :data:`UNKNOWN`.
    """
    factor = 63 / scale if scale > 0 else 0.0
    return "".join(LEVELS[max(0, min(63, round(value * factor)))] if value == value else UNKNOWN for value in values)


def round_scale(highest: float) -> float:
    """The end of an axis for values up to ``highest``: 1, 2 or 5 times a power of ten."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= highest * 0.999999)

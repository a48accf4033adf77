"""Curves of what ranks have logged: one for each rank where they are few, else the mean and the range."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..loop.framing import Header

POINTS = 240
"""Points of a curve: one for two pixels of its width."""

MOST_CURVES = 24

LINES_UP_TO = 8
"""Ranks that have a line of their own."""


class Curves:
    """The metrics of one gang, by name."""

    def __init__(self) -> None:
        self._latest: dict[str, dict[str, tuple[float, float]]] = {}
        self._lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
        self._ranges: dict[str, list[tuple[float, float, float, float]]] = {}

    def add(self, records: Iterable[Sequence[Any]]) -> None:
        """Take the latest ``[metric, rank, step, value]`` of one node's ranks, or of several nodes'."""
        for name, who, step, value in records:
            if name in self._latest or len(self._latest) < MOST_CURVES:
                self._latest.setdefault(name, {})[who] = (step, value)

    def mark(self) -> None:
        """All nodes have been asked: where a metric has gone on, this is a point of its curve."""
        for name, latest in self._latest.items():
            if len(latest) <= LINES_UP_TO:
                lines = self._lines.setdefault(name, {})
                for who, point in latest.items():
                    _go_on(lines.setdefault(who, []), point)
            else:
                step, values = max(step for step, _ in latest.values()), [value for _, value in latest.values()]
                ranges = self._ranges.setdefault(name, [])
                _go_on(ranges, (step, sum(values) / len(values), min(values), max(values)))

    def as_dict(self) -> Header:
        """By name: ``ranks`` with each one's ``[step, value]``; or ``steps``, ``mean``, ``low``, ``high`` and, once,
        ``count``.
        """
        found: Header = {}
        for name, latest in self._latest.items():
            if name in self._ranges:
                steps, mean, low, high = (list(map(_short, column)) for column in zip(*self._ranges[name], strict=True))
                found[name] = {"steps": steps, "mean": mean, "low": low, "high": high, "count": len(latest)}
            elif name in self._lines:
                lines = self._lines[name]
                ranks = sorted(lines, key=lambda who: (len(who), who))
                found[name] = {"ranks": {who: [list(map(_short, point)) for point in lines[who]] for who in ranks}}
        return found


def _go_on(points: list[Any], point: tuple[float, ...]) -> None:
    """Add a point whose step is a new one; a long curve is thinned."""
    if not points or points[-1][0] != point[0]:
        points.append(point)
        if len(points) > POINTS:
            del points[1:-1:2]


def _short(value: float) -> float:
    return float(f"{value:.6g}")

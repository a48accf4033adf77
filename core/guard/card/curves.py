"""Curves of what ranks have logged: one for each rank where they are few, else the mean and the range."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from collections.abc import Iterable, Sequence
    from typing import Any

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
        self._points: dict[str, list[tuple[float, dict[str, float]]]] = {}

    def add(self, records: Iterable[Sequence[Any]]) -> None:
        """Take the latest ``[metric, rank, step, value]`` of one node's ranks, or of several nodes'."""
        for name, who, step, value in records:
            if name in self._latest or len(self._latest) < MOST_CURVES:
                self._latest.setdefault(name, {})[who] = (step, value)

    def mark(self) -> None:
        """All nodes have been asked: where a metric has gone on, this is a point of its curve."""
        for name, latest in self._latest.items():
            step = max(step for step, _ in latest.values())
            points = self._points.setdefault(name, [])
            if not points or points[-1][0] != step:
                points.append((step, {who: value for who, (_, value) in latest.items()}))
                if len(points) > POINTS:
                    del points[1:-1:2]

    def as_dict(self) -> Header:
        """By name: ``steps``, and ``ranks`` with each one's values; or ``mean``, ``low``, ``high`` and ``count``."""
        return {name: _curve(points, len(self._latest[name])) for name, points in self._points.items()}


def _curve(points: list[tuple[float, dict[str, float]]], count: int) -> Header:
    steps = [step for step, _ in points]
    if count <= LINES_UP_TO:
        ranks = sorted({who for _, values in points for who in values}, key=lambda who: (len(who), who))
        return {"steps": steps, "ranks": {who: [_short(values.get(who)) for _, values in points] for who in ranks}}
    columns = [list(values.values()) for _, values in points]
    return {
        "steps": steps,
        "mean": [_short(sum(values) / len(values)) for values in columns],
        "low": [_short(min(values)) for values in columns],
        "high": [_short(max(values)) for values in columns],
        "count": count,
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")

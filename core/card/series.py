"""Samples of many nodes in few bytes: one of 64 levels for each moment."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
"""A level in one letter. 64 of them are finer than a line of a chart is high in pixels, and 1,024 nodes with 120
moments and five metrics stay below 650 kB."""

UNKNOWN = "."

MOMENTS = 120
"""Moments that a chart has: about one for four pixels of its width."""


def encoded(values: Sequence[float | None], scale: float) -> str:
    """Values between 0 and ``scale`` as letters; what is out of range counts as the nearest that is in it."""
    return "".join(UNKNOWN if value is None else LEVELS[_level(value, scale)] for value in values)


def _level(value: float, scale: float) -> int:
    return max(0, min(63, round(63 * value / scale))) if scale > 0 else 0


def resampled(times: Sequence[float], values: Sequence[float | None], edges: Sequence[float]) -> list[float | None]:
    """The mean of the values between each two edges; None where there is none.

    Parameters
    ----------
    times : sequence of float, ascending
        Of the values, in seconds.
    edges : sequence of float, ascending
        One more than there are results.
    """
    found: list[float | None] = []
    index = 0
    for low, high in itertools.pairwise(edges):
        while index < len(times) and times[index] < low:
            index += 1
        inside = []
        while index < len(times) and times[index] < high:
            value = values[index]
            if value is not None:
                inside.append(value)
            index += 1
        found.append(sum(inside) / len(inside) if inside else None)
    return found


def nice_scale(highest: float) -> float:
    """The end of an axis for values up to ``highest``: 1, 2 or 5 times a power of ten."""
    if highest <= 0:
        return 1.0
    power = 1.0
    while power * 10 <= highest:
        power *= 10
    while power > highest:
        power /= 10
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= highest)

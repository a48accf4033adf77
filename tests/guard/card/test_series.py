"""Samples of many nodes on one axis of time: letters, holes, an axis that is full, and its scale."""

from __future__ import annotations

import math

import pytest

from metaflow_extensions.gang.core.guard.card.series import MOMENTS, History, encoded, held, round_scale

NAN = math.nan


def test_values_become_letters() -> None:
    assert encoded([0, 50, 100, NAN, -3, 900], 100) == "Ag_.A_"
    assert encoded([1.0], 0.0) == "A"


@pytest.mark.parametrize("highest, scale", [(0, 1), (0.7, 1), (1, 1), (3, 5), (700, 1000), (1.2e9, 2e9), (1000, 1000)])
def test_an_axis_ends_at_a_round_number(highest: float, scale: float) -> None:
    assert round_scale(highest) == pytest.approx(scale)


def test_a_value_counts_until_the_next_one_but_not_for_ever() -> None:
    assert str(held([1.0, NAN, NAN, NAN, 2.0], 7, 2)) == str([1.0, 1.0, 1.0, NAN, 2.0, 2.0, 2.0])
    assert str(held([], 2, 2)) == str([NAN, NAN])


def test_all_nodes_share_one_axis() -> None:
    history = History(2, 1000.0, 2.0, ("cpu",))
    history.add(1000.1, 0, {"cpu": 0.0, "disk": 30.0})
    history.add(1004.5, 1, {"cpu": 100.0})
    history.add(999.0, 1, {"cpu": 50.0})  # before the axis begins
    series = history.as_series()
    assert (series["start"], series["every"]) == (1000.0, 2.0)
    assert series["values"]["cpu"] == {"scale": 100.0, "nodes": ["AAA", ".._"]}
    assert series["values"]["disk"] == {"scale": 50.0, "nodes": ["mmm", "..."]}


def test_a_full_axis_gets_coarser_and_keeps_its_beginning() -> None:
    history = History(1, 0.0, 1.0, ("cpu",))
    for second in range(3 * MOMENTS):
        history.add(second + 0.5, 0, {"cpu": 100.0 if second < MOMENTS else 0.0})
    series = history.as_series()
    assert series["every"] == 4.0
    (letters,) = series["values"]["cpu"]["nodes"]
    assert len(letters) == 3 * MOMENTS / 4 <= MOMENTS
    assert letters == "_" * (MOMENTS // 4) + "A" * (MOMENTS // 2)


def test_a_node_that_was_silent_for_a_day_does_no_harm() -> None:
    history = History(1, 0.0, 2.0, ("cpu",))
    history.add(0.0, 0, {"cpu": 100.0})
    history.add(86_400.0, 0, {"cpu": 100.0})
    (letters,) = history.as_series()["values"]["cpu"]["nodes"]
    assert letters.count("_") >= 2 and len(letters) <= MOMENTS

"""Numbers that ranks log: from a line in a file to a curve."""

from __future__ import annotations

import json
from pathlib import Path

import metaflow  # noqa: F401 - it loads the package by itself, and must not be asked to half-way
import pytest

from metaflow_extensions.gang.core.gang_log import gang_log
from metaflow_extensions.gang.core.guard.card.curves import LINES_UP_TO, POINTS, Curves
from metaflow_extensions.gang.core.guard.samples.user_metrics import FILE, FILE_VARIABLE, MOST, MOST_BYTES, UserMetrics


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / FILE))
    monkeypatch.setenv("RANK", "3")
    return tmp_path


def test_the_latest_value_of_each_rank_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = UserMetrics(str(folder))
    assert metrics.read() == []
    gang_log(step=1, loss=2.0)
    gang_log(step=2, loss=1.5, accuracy=0.5)
    monkeypatch.setenv("RANK", "4")
    gang_log(step=2, loss=1.0)
    assert metrics.read() == [["loss", "3", 2.0, 1.5], ["accuracy", "3", 2.0, 0.5], ["loss", "4", 2.0, 1.0]]
    gang_log(step=3, loss=0.5)
    assert ["loss", "4", 3.0, 0.5] in metrics.read()


def test_a_line_is_read_once_it_is_whole(folder: Path) -> None:
    metrics = UserMetrics(str(folder))
    line = json.dumps({"rank": 0, "step": 1, "values": {"loss": 1.0}})
    (folder / FILE).write_text(line[:20])
    assert metrics.read() == []
    (folder / FILE).write_text(line + "\n")
    assert metrics.read() == [["loss", "0", 1.0, 1.0]]


def test_what_is_no_number_is_left_out(folder: Path) -> None:
    metrics = UserMetrics(str(folder))
    gang_log(step=1, loss=float("nan"), text="x", big=10**400)  # nothing of the call: it is not known what was meant
    gang_log(step=1, loss=float("inf"))
    for line in ("nonsense", "[]", '{"rank": 1}', "[" * 5000, '{"rank": 0, "step": "x", "values": {}}'):
        with open(folder / FILE, "a") as file:
            file.write(line + "\n")
    assert metrics.read() == []


def test_the_file_does_not_grow_for_ever(folder: Path) -> None:
    metrics = UserMetrics(str(folder))
    text = json.dumps({"rank": 0, "step": 1, "values": {"x" * 80: 1.0}}) + "\n"
    with open(folder / FILE, "w") as file:
        file.write(text * (2 * MOST_BYTES // len(text)))
    assert len(metrics.read()) == 1
    assert (folder / FILE).stat().st_size == 0
    gang_log(step=5, loss=1.0)
    assert ["loss", "3", 5.0, 1.0] in metrics.read()


def test_too_many_metrics_are_left_out(folder: Path) -> None:
    gang_log(step=1, **{f"metric{number}": 1.0 for number in range(2 * MOST)})
    assert len(UserMetrics(str(folder)).read()) == MOST


def test_outside_of_a_gang_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    gang_log(step=1, loss=1.0)
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "gone" / FILE))
    gang_log(step=1, loss=1.0)


def test_few_ranks_have_a_line_each_with_steps_of_its_own() -> None:
    curves = Curves()
    for step in (1, 2, 2, 3):
        curves.add([["loss", "0", step, 1.0 / step], ["loss", "10", 2 * step, 2.0]])
        curves.add([["loss", "2", 7, 3.0]])
        curves.mark()
    assert curves.as_dict() == {
        "loss": {
            "ranks": {"0": [[1, 1.0], [2, 0.5], [3, 0.333333]], "2": [[7, 3.0]], "10": [[2, 2.0], [4, 2.0], [6, 2.0]]}
        }
    }


def test_many_ranks_have_a_mean_and_a_range() -> None:
    curves = Curves()
    count = LINES_UP_TO + 1
    curves.add([["loss", "0", 1, 7.0]])
    curves.mark()  # the others have not logged yet
    curves.add([["loss", str(rank), 1, float(rank)] for rank in range(count)])
    curves.mark()
    assert curves.as_dict()["loss"] == {"steps": [1], "mean": [4.0], "low": [0.0], "high": [8.0], "count": count}


def test_a_long_curve_is_thinned_and_keeps_both_ends() -> None:
    curves = Curves()
    for step in range(5000):
        curves.add([["loss", "0", step, float(step)]])
        curves.mark()
    points = curves.as_dict()["loss"]["ranks"]["0"]
    assert len(points) <= POINTS and points[0] == [0, 0] and points[-1] == [4999, 4999]

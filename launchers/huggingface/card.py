"""What the two cards show: the arguments, and the metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from metaflow.cards import Markdown, ProgressBar, VegaChart

from ...core.metaflow_compat.cards import set_maximum
from .card_file import Training, finite

POINTS = 1000
"""Points of a curve that a card holds: more than a screen can show, and each of them travels with every update."""

_CELL_CHARS = 300
_NOTHING_YET = "_Nothing yet: the training has not reported anything on this node._"


class VariablesCard:
    """What hardly changes: where the training runs, the Trainer's arguments, the model's configuration."""

    card_id = "training_variables"
    refresh_interval = 10.0  # seconds

    def __init__(self, pathspec: str) -> None:
        self._run = Markdown(_NOTHING_YET)
        self._trainer = Markdown("")
        self._model = Markdown("")
        self.components = [Markdown(f"# Training arguments\n{pathspec}"), self._run, self._trainer, self._model]

    def update(self, training: Training) -> list[Any]:
        """Show this; returns components to append, of which this card has none."""
        self._run.update(_section("Run", training.runtime_info))
        self._trainer.update(_section("Trainer", training.trainer_configuration))
        self._model.update(_section("Model", training.model_config))
        return []


class MetricsCard:
    """The metrics: how far the training is, a curve each, and their last values."""

    card_id = "training_metrics"
    refresh_interval = 0.5  # seconds

    def __init__(self, pathspec: str) -> None:
        self._progress = Markdown(_NOTHING_YET)
        self._bar = ProgressBar(max=1, label="Steps", value=0)
        self._values = Markdown("")
        self._charts: dict[str, Any] = {}
        self.components = [Markdown(f"# Training metrics\n{pathspec}"), self._progress, self._bar, self._values]

    def update(self, training: Training) -> list[Any]:
        """Show this; returns components to append: the charts of metrics that are new."""
        state = training.training_state
        self._progress.update(_progress(state, training.created_on))
        step, steps = state.get("global_step"), state.get("max_steps")
        if finite(step) and finite(steps):
            set_maximum(self._bar, max(steps, 1))  # known now only
            self._bar.update(step)
        self._values.update(_last_values(training.metrics))
        new = []
        for name, points in training.metrics.items():
            if name in self._charts:
                self._charts[name].update(chart(name, points))
            else:
                self._charts[name] = VegaChart(chart(name, points))
                new.append(self._charts[name])
        return new


def _progress(state: Mapping[str, Any], when: str) -> str:
    parts = []
    if finite(state.get("global_step")):
        parts.append(f"step {state['global_step']} of {state.get('max_steps')}")
    if finite(state.get("epoch")):
        parts.append(f"epoch {state['epoch']:.2f} of {state.get('num_train_epochs')}")
    if when:
        parts.append(f"reported on {_cell(when[:19].replace('T', ' '))}")
    return ", ".join(parts).capitalize()


def _last_values(metrics: Mapping[str, list[tuple[float, float | None]]]) -> str:
    rows = ["| metric | last | at step | lowest | highest |", "|---|---|---|---|---|"]
    for name, points in metrics.items():
        step, last = points[-1]
        values = [value for _, value in points if value is not None]
        low, high = (f"{min(values):.6g}", f"{max(values):.6g}") if values else ("", "")
        shown = "not a finite number" if last is None else f"{last:.6g}"
        rows.append(f"| {_cell(name)} | {shown} | {step} | {low} | {high} |")
    return "\n".join(rows) if metrics else ""


def _section(title: str, values: Mapping[str, Any]) -> str:
    """A table as Markdown, and not as a Table: a Table cannot get rows without the whole card being made anew."""
    rows = [f"| {_cell(str(name))} | {_cell(_text(value))} |" for name, value in values.items()]
    return "\n".join([f"## {title}", "", "| name | value |", "|---|---|", *rows]) if rows else ""


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def _cell(text: str) -> str:
    """As code, so that nothing in it is taken for Markdown or HTML."""
    text = re.sub(r"\s+", " ", text).strip().replace("`", "'")
    if len(text) > _CELL_CHARS:
        text = text[:_CELL_CHARS] + "..."
    text = text.replace("|", "\\|")
    return f"`{text}`" if text else ""


def chart(name: str, points: list[tuple[float, float | None]]) -> dict[str, Any]:
    """A metric's curve over the training's steps, as a Vega-Lite specification."""
    points = thinned(points)
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": name,
        "height": 220,
        "data": {"values": [{"step": step, "value": value} for step, value in points]},
        "mark": {"type": "line", "tooltip": True, "point": len(points) <= 100},
        "encoding": {
            "x": {"field": "step", "type": "quantitative", "title": "step", "axis": {"labelOverlap": True}},
            "y": {"field": "value", "type": "quantitative", "title": name, "scale": {"zero": False}},
        },
        "usermeta": {"embedOptions": {"renderer": "svg"}},
    }


def thinned(points: list[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """At most :data:`POINTS` of them, evenly chosen, the first and the last among them."""
    if len(points) <= POINTS:
        return points
    last = len(points) - 1
    return [points[round(index * last / (POINTS - 1))] for index in range(POINTS)]

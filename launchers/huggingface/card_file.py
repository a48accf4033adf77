"""The JSON file by which a Trainer, in any process, reports its progress to the step's cards."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from ...core.metaflow_compat.environment import NODE_INDEX

FILE_VARIABLE = "METAFLOW_HF_CARD_SAVE_FILE_NAME"
"""The variable with the file's path."""

DEFAULT_FILE_NAME = "huggingface_model_card.json"
"""The file's default name, in the working folder."""

_FOLDER_PREFIX = "metaflow-hf-card-"


@dataclass(frozen=True)
class Training:
    """The content of the file when it was read.

    ``metrics`` has the curves by name: (step, value) pairs, where a value that is no finite number is None.
    """

    metrics: dict[str, list[tuple[float, float | None]]] = field(default_factory=dict)
    model_config: dict[str, Any] = field(default_factory=dict)
    trainer_configuration: dict[str, Any] = field(default_factory=dict)
    runtime_info: dict[str, Any] = field(default_factory=dict)
    training_state: dict[str, Any] = field(default_factory=dict)
    created_on: str = ""


def parse(text: str | bytes) -> Training | None:
    """The state in a file's content, or None where it is not (yet) such a file. What does not fit is left out."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("metrics"), dict):
        return None
    metrics = {str(name): _points(points) for name, points in content["metrics"].items()}
    return Training(
        metrics={name: points for name, points in metrics.items() if points},
        model_config=_mapping(content.get("model_config")),
        trainer_configuration=_mapping(content.get("trainer_configuration")),
        runtime_info=_mapping(content.get("runtime_info")),
        training_state=_mapping(content.get("training_state")),
        created_on=str(content.get("created_on") or ""),
    )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _points(points: Any) -> list[tuple[float, float | None]]:
    found = []
    for point in points if isinstance(points, list) else ():
        step, value = (point.get("step"), point.get("value")) if isinstance(point, dict) else (None, None)
        if finite(step) and isinstance(value, (int, float)):
            # NaN and infinity are no JSON, and a browser would not show the card at all.
            found.append((step, value if finite(value) else None))
    return found


def finite(value: Any) -> TypeGuard[float]:
    """Whether this is a number that JSON has."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class CardFile:
    """This task's file: its path and its content now.

    A path that the user gave in :data:`FILE_VARIABLE` holds. Without one the variable is set to a file in a folder of
    this task's own: tasks that share a working folder, as on a laptop, do not show each other's training. The old file
    name in the working folder is looked at too, for writers that do not ask the variable, but not on the nodes of a
    gang that cannot have rank 0.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        given = environ.get(FILE_VARIABLE, "")
        if os.path.basename(os.path.dirname(given)).startswith(_FOLDER_PREFIX):
            given = ""  # Control's own, inherited by the nodes that it started.
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if given:
            self.path = os.path.abspath(given)
        else:
            self._folder = tempfile.TemporaryDirectory(prefix=_FOLDER_PREFIX, ignore_cleanup_errors=True)
            self.path = os.path.join(self._folder.name, DEFAULT_FILE_NAME)
        paths = [self.path]
        if environ.get(NODE_INDEX, "0") == "0":
            paths.append(os.path.abspath(DEFAULT_FILE_NAME))
        # A file that was there before is an earlier training's.
        self._seen = {path: _version(path) for path in dict.fromkeys(paths)}

    def changed(self) -> Training | None:
        """The file's content, where it has changed since the last call and is valid; else None."""
        found = None
        for path, seen in self._seen.items():
            version = _version(path)
            if version is None or version == seen:
                continue
            self._seen[path] = version
            try:
                with open(path, "rb") as file:
                    found = parse(file.read()) or found
            except OSError:
                continue
        return found

    def __enter__(self) -> CardFile:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the folder that was made for it."""
        if self._folder is not None:
            self._folder.cleanup()


def _version(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size

"""A file with a node's metrics as text for Prometheus, which node_exporter's textfile collector reads."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from .points import COUNTER

if TYPE_CHECKING:
    from .points import Point

_UNITS = {"By": "bytes", "s": "seconds", "W": "watts"}

_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})

_OURS = re.compile(r"^(metaflow|gang)\.")


def metric_name(name: str, kind: str, unit: str) -> str:
    """As OpenTelemetry's rules for Prometheus have it: with the unit, "_ratio" for a part of a whole, "_total"."""
    found = re.sub(r"[^A-Za-z0-9_:]", "_", name)
    word = _UNITS.get(unit) or ("ratio" if name.endswith(".utilization") else "")
    if word and not found.endswith(f"_{word}"):
        found += f"_{word}"
    return f"{found}_total" if kind == COUNTER else found


def label_name(attribute: str) -> str:
    """ "flow" of "metaflow.flow", "rank" of "gang.rank", "host" of "host.name"."""
    return "host" if attribute == "host.name" else re.sub(r"[^A-Za-z0-9_]", "_", _OURS.sub("", attribute))


def as_text(points: Iterable[Point], resource: Mapping[str, str | int]) -> str:
    """The text of a file.

    Parameters
    ----------
    resource : mapping
        Attributes of all of them.
    """
    families: dict[str, list[str]] = {}
    seen: set[str] = set()
    for name, kind, unit, text, value, attributes in points:
        family = metric_name(name, kind, unit)
        head = [f"# HELP {family} {text}\n", f"# TYPE {family} {COUNTER if kind == COUNTER else 'gauge'}\n"]
        labels = {label_name(key): str(what).translate(_ESCAPES) for key, what in {**resource, **attributes}.items()}
        series = family + "{" + ",".join(f'{key}="{what}"' for key, what in labels.items()) + "}"
        if series not in seen:  # names that differ in what Prometheus does not take
            seen.add(series)
            families.setdefault(family, head).append(f"{series} {value!r}\n")
    return "".join("".join(lines) for lines in families.values())


class MetricsFile:
    """Writes the file again and again, each time as a whole; complains once where it cannot.

    Parameters
    ----------
    path : str
    resource : mapping
        Attributes of all metrics.
    say : callable
        Takes a line for the user.
    """

    def __init__(self, path: str, resource: Mapping[str, str | int], say: Callable[[str], None]) -> None:
        self._path, self._resource, self._say = path, resource, say
        # In the same folder, or it could not be renamed; the collector reads names that end in ".prom".
        self._temporary = f"{path}.{os.getpid()}.tmp"
        self._has_complained = False

    def write(self, points: Iterable[Point]) -> None:
        """Replace the file."""
        text = as_text(points, self._resource)
        try:
            # Another user's node_exporter reads it, as far as the umask lets it.
            descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(self._temporary, self._path)
        except OSError as error:
            if not self._has_complained:
                self._has_complained = True
                self._say(f"METAFLOW_GANG_METRICS_FILE: {self._path} cannot be written: {error.strerror}.")
            self._remove(self._temporary)

    def remove(self) -> None:
        """The node has ended: series that stay would look like one that lives."""
        self._remove(self._path)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path)

"""The metrics of a node, each with name, kind and unit by OpenTelemetry's conventions; its own begin with ``gang.``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Attributes = dict[str, str | int]

    Point = tuple[str, str, str, str, float, Attributes]
    """Name, kind, unit (UCUM), what it is, value, and attributes."""

GAUGE, COUNTER, UPDOWN = "gauge", "counter", "updown"

USER = "gang.user."
"""Begins the name of what was logged by ``gang_log``."""

_GPU = (
    # in a sample (:mod:`..samples.gpus`), name, kind, unit, text, divisor
    ("util", "hw.gpu.utilization", GAUGE, "1", "Part of the time in which the GPU was busy.", 100.0),
    ("memory", "hw.gpu.memory.usage", UPDOWN, "By", "Memory of the GPU in use.", 1.0),
    ("total", "hw.gpu.memory.limit", UPDOWN, "By", "Memory of the GPU.", 1.0),
    ("power", "hw.power", GAUGE, "W", "Power that the GPU draws.", 1.0),
    ("ecc", "hw.errors", COUNTER, "{error}", "Uncorrected memory errors since the driver was loaded.", 1.0),
    ("xid", "gang.gpu.xid", GAUGE, "1", "The last Xid error of the GPU since the gang began.", 1.0),
)

_RANK = (
    ("cpu_s", "gang.rank.cpu.time", COUNTER, "s", "CPU time of the rank, that of its children included."),
    ("rss", "gang.rank.memory.usage", UPDOWN, "By", "Memory of the rank, that of its children included."),
)

_IO = (
    ("rx", "system.network.io", "network.io.direction", "receive"),
    ("tx", "system.network.io", "network.io.direction", "transmit"),
    ("read", "system.disk.io", "disk.io.direction", "read"),
    ("written", "system.disk.io", "disk.io.direction", "write"),
)


def of_sample(sample: Mapping[str, Any], cpus: int) -> Iterator[Point]:
    """The points of one sample.

    Parameters
    ----------
    sample : dict
        Of :mod:`..samples.sampler`, with ``ranks``, ``log`` and ``totals`` (bytes since the machine's start).
    cpus : int
        Processors of the node.
    """
    used, limit = float(sample["memory"]), float(sample["limit"])
    busy = min(1.0, sample["cpu"] / max(1, cpus))
    yield "system.cpu.utilization", GAUGE, "1", "Part of the node's processors that was busy.", round(busy, 4), {}
    yield "system.memory.usage", UPDOWN, "By", "Memory of the node in use.", used, {"system.memory.state": "used"}
    if limit > 0:
        yield "system.memory.limit", UPDOWN, "By", "Memory that the node may use.", limit, {}
        yield "system.memory.utilization", GAUGE, "1", "Part of the memory that is in use.", round(used / limit, 4), {}
    for field, name, attribute, direction in _IO:
        what = "Bytes through the node's network." if field in ("rx", "tx") else "Bytes of the node's disks."
        yield name, COUNTER, "By", what, float(sample["totals"][field]), {attribute: direction}
    for index, gpu in enumerate(sample.get("gpus", ())):
        for field, name, kind, unit, text, divisor in _GPU:
            if gpu.get(field) is not None:
                more: Attributes = {"hw.id": str(index), "hw.type": "gpu"}
                if name == "hw.errors":
                    more["error.type"] = "uncorrected"
                yield name, kind, unit, text, gpu[field] / divisor, more
    for record in sample["ranks"]:
        rank: Attributes = {"gang.rank": str(record["title"] if record["rank"] is None else record["rank"])}
        for field, name, kind, unit, text in _RANK:
            yield name, kind, unit, text, float(record[field]), rank
        if record["line_at"]:
            age = max(0.0, round(sample["at"] - record["line_at"], 2))
            yield "gang.rank.output.age", GAUGE, "s", "Time since the last line that the rank has written.", age, rank
    yield from _of_log(sample["log"])


def _of_log(log: Iterable[tuple[str, str, float, float]]) -> Iterator[Point]:
    steps: dict[str, float] = {}
    for name, who, step, value in log:
        steps[who] = max(step, steps.get(who, step))
        named = USER + re.sub(r"[^A-Za-z0-9_.\-/]", "_", name)
        yield named, GAUGE, "1", "Logged by gang_log.", value, {"gang.rank": who}
    for who, step in steps.items():
        yield "gang.step", GAUGE, "1", "The last step that was logged by gang_log.", step, {"gang.rank": who}


def of_state(phases: Mapping[str, Any], failure: Mapping[str, Any] | None) -> Iterator[Point]:
    """The points of the phases that have begun, and of the gang's first failure.

    Parameters
    ----------
    phases : dict
        ``since`` and ``times`` of :class:`..phases.NodePhases`.
    failure : dict or None
        Its record, or None where nothing has failed.
    """
    yield "gang.task.start_time", GAUGE, "s", "When the task has started, since the epoch.", phases["since"], {}
    for name, seconds in phases["times"].items():
        text = "Time from the start of the task to the beginning of the phase."
        yield "gang.phase.time", GAUGE, "s", text, seconds, {"gang.phase": name}
    where: Attributes = {}
    if failure is not None:
        where = {"gang.failure.kind": str(failure.get("kind", "")), "gang.failure.node": int(failure.get("node", 0))}
        if failure.get("rank") is not None:
            where["gang.failure.rank"] = int(failure["rank"])
    has_failed = float(failure is not None)
    yield "gang.failed", GAUGE, "1", "Whether the gang has failed, and where it did first.", has_failed, where

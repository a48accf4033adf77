"""One snapshot of the gang for its card: who has joined, which phase each node is in, what ranks do, what failed."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..phases import NAMES, STARTED
from ..text import INDENT

if TYPE_CHECKING:
    Phases = Mapping[int, tuple[float, dict[str, float]]]
    """By node: when its task started (epoch), and the seconds from then to each phase."""

    from ..loop.framing import Header

MOST_RANKS = 256
"""Rows of the table of ranks, so that the card of 8,192 ranks stays small."""

MOST_RESTARTS = 20
"""Restarts that the card shows."""

MOST_GPUS = 64
"""Rows of the table of GPUs."""

MOST_TRACES = 64
"""Rows of the table of traces, and sentences about those that are left out."""

METRICS_OF_GPUS = (("gpu", "util"), ("gpu_power", "power"))
"""Names on the card, and in a sample of :mod:`..samples.gpus`."""

PERCENTS = ("cpu", "memory", "gpu", "gpu_memory")


def value(record: Mapping[str, Any], name: str) -> float:
    """A number of a record; 0.0 where it has none."""
    return float(record.get(name) or 0.0)


def metrics(sample: Mapping[str, Any], cpus: int) -> dict[str, float]:
    """What the card draws of a node's sample (:mod:`..samples.sampler`): percents, bytes a second, and watts.

    Parameters
    ----------
    cpus : int
        Processors of the node.
    """
    found: dict[str, float] = {}
    found["cpu"] = min(100.0, 100.0 * value(sample, "cpu") / max(1, cpus))
    if value(sample, "limit") > 0:
        found["memory"] = min(100.0, 100.0 * value(sample, "memory") / value(sample, "limit"))
    found["network"] = value(sample, "rx") + value(sample, "tx")
    found["disk"] = value(sample, "read") + value(sample, "written")
    gpus = sample.get("gpus")
    gpus = [gpu for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else []
    for name, field in METRICS_OF_GPUS:
        known = [value(gpu, field) for gpu in gpus if gpu.get(field) is not None]
        if known:
            found[name] = sum(known) / len(known) if field == "util" else sum(known)
    total = sum(value(gpu, "total") for gpu in gpus)
    if total > 0:
        found["gpu_memory"] = min(100.0, 100.0 * sum(value(gpu, "memory") for gpu in gpus) / total)
    return found


def gpus(samples: Mapping[int, Mapping[str, Any]]) -> list[Header]:
    """The GPUs of all nodes, of each what its sample has (:mod:`..samples.nvml`); ``errors`` are uncorrected ECC errors
    and the last Xid error, as text.
    """
    rows: list[Header] = []
    for node, sample in sorted(samples.items()):
        of_node = sample.get("gpus")
        for index, gpu in enumerate(of_node if isinstance(of_node, list) else []):
            if isinstance(gpu, dict):
                errors = [f"{gpu['ecc']} ECC"] if gpu.get("ecc") else []
                errors += [f"Xid {gpu['xid']}"] if gpu.get("xid") else []
                known = {name: gpu.get(name) for name in ("util", "memory", "total", "power")}
                rows.append({"node": node, "gpu": index, **known, "errors": ", ".join(errors)})
    return rows


def shown_gpus(rows: list[Header]) -> list[Header]:
    """Of more than :data:`MOST_GPUS` those that have errors, and the least busy."""
    if len(rows) > MOST_GPUS:
        rows = sorted(rows, key=lambda row: (not row["errors"], value(row, "util")))[:MOST_GPUS]
    return sorted(rows, key=lambda row: (row["node"], row["gpu"]))


def nodes(
    hosts: Mapping[int, str], count: int, phases: Phases, since: float, more: Mapping[int, Header] | None = None
) -> list[Header]:
    """Each node with its host, in ``at`` the seconds from ``since`` (epoch) to each of its phases, and what ``more``
    has of it (:func:`..node_roles.without_ranks`).
    """
    found = []
    for index in range(count):
        start, times = phases.get(index, (since, {}))
        at = {name: round(max(0.0, start - since + times[name]), 2) for name in NAMES if name in times}
        found.append({"index": index, "host": hosts.get(index, ""), "at": at, **(more or {}).get(index, {})})
    return found


def first_start(phases: Phases, otherwise: float) -> float:
    """When the first node's task has started (epoch)."""
    return min((since + times.get(STARTED, 0.0) for since, times in phases.values()), default=otherwise)


def ranks(
    records: Iterable[tuple[int, Mapping[str, Any]]],
    now: float,
    report: Mapping[str, Any] | None,
    is_over: bool,
    left_out: Collection[int] = (),
) -> list[Header]:
    """The table of ranks: of more than :data:`MOST_RANKS` the one that failed, and those silent the longest.

    Parameters
    ----------
    records : iterable of (int, dict)
        Nodes, and what :func:`..samples.ranks.sample` has of a rank there.
    now : float
        Seconds since the epoch.
    report : dict or None
        The failure report.
    is_over : bool
        Whether the step is over, and nothing runs any more.
    left_out : collection of int
        Nodes without which the gang goes on: what is known of their ranks is the last of them.
    """
    cause = (report or {}).get("failure") or {}
    rows: list[Header] = []
    for node, record in records:
        at, rank = record.get("line_at"), record.get("rank")
        is_left_out = node in left_out
        is_silent = not is_over and not is_left_out
        is_cause = bool(cause) and cause.get("node") == node and rank is not None and cause.get("rank") == rank
        rows.append(
            {
                "rank": record.get("title") if rank is None else rank,
                "node": node,
                "state": "failed" if is_cause else "ended" if is_over else _state(record, is_left_out),
                "runs": not is_over and not is_cause and not is_left_out,
                "bad": is_cause,
                "cpu": record.get("cpu_s"),
                "memory": record.get("rss"),
                "silent": round(max(0.0, now - at), 1) if is_silent and isinstance(at, float) and at > 0 else None,
                "line": record.get("line"),
            }
        )
    if len(rows) > MOST_RANKS:
        rows.sort(key=lambda row: (not row["bad"], -(row["silent"] or 0.0)))
        del rows[MOST_RANKS:]
    rows.sort(key=lambda row: (row["node"], str(row["rank"]).zfill(8)))
    return rows


def _state(record: Mapping[str, Any], is_left_out: bool) -> str:
    return "left out" if is_left_out else _STATES.get(str(record.get("state")), RUNS)


RUNS = "running"

_STATES = {"T": "stopped (SIGSTOP)", "t": "traced", "D": "waits in the kernel", "Z": "has ended"}
"""Letters of proc(5) that mean more than that a process runs, or waits for something."""


def failure(report: Mapping[str, Any] | None) -> Header | None:
    """The failure report, as title and text: its first line, and the rest."""
    if report is None:
        return None
    title, _, text = str(report.get("report", "")).strip().partition("\n")
    cause = report.get("failure")
    when = cause.get("time") if isinstance(cause, dict) else None
    text = "\n".join(line.removeprefix(INDENT) for line in text.strip("\n").splitlines())
    return {"title": title, "text": text, "when": when if isinstance(when, float) else time.time()}


def restarts(entries: list[Header]) -> list[Header]:
    """The restarts of ranks, of more than :data:`MOST_RESTARTS` the latest: ``line``, and ``at`` (epoch). Why there was
    none any more is in the failure's text.
    """
    found = [{name: entry[name] for name in ("line", "at")} for entry in entries if entry["again"]]
    return found[-MOST_RESTARTS:]


def stall(found: Mapping[str, Any] | None, now: float) -> Header | None:
    """Where all ranks stand while the gang makes no progress, as title and text, and the ``groups`` as data."""
    if found is None:
        return None
    minutes, seconds = divmod(int(now - found["since"]), 60)
    silent = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    title = f"No rank has made progress for {silent}: {found['line']}"
    return {"title": title, "text": found["text"], "groups": found["groups"], "since": found["since"]}


def traces(found: Mapping[int, Mapping[str, Any]]) -> Header | None:
    """The profiler's traces of all nodes (``core/storage/traces.py``), None where there are none.

    ``files`` are those with their nodes and locations, of more than :data:`MOST_TRACES` those of the first nodes;
    ``in_all`` is their number, and ``left_out`` has a sentence for each node that has not stored some.
    """
    if not found:
        return None
    rows: list[Header] = []
    for node, record in sorted(found.items()):
        for file in record["files"][: max(0, MOST_TRACES - len(rows))]:
            known = {"node": node, "rank": file.get("rank"), "bytes": file["bytes"]}
            rows.append({**known, "where": f"{record['where']}/{file['name']}"})
    left_out = [f"Node {node}: {record['left_out']}" for node, record in sorted(found.items()) if record["left_out"]]
    in_all = sum(len(record["files"]) for record in found.values())
    return {"files": rows, "in_all": in_all, "left_out": left_out[:MOST_TRACES]}

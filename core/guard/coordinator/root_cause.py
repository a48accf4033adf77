"""Which of all failure records is the root cause, and the failure report that every node shows.

Order of causes:

1. evidence: death by a signal that we did not send, an exception, a non-zero exit, a task that vanished;
2. a lost connection or host;
3. an error that says "my peer is gone", from a process whose peer did fail.

Within a class the earlier one counts, by the control guard's clock; two that are closer together than their clocks can
tell apart are both named.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any

from ..failure_record import EVIDENCE, PEER, PREEMPTED, Failure
from ..text import indent

REPORT_SETTLE_S = 0.1
"""The least wait: a death is seen by several guards, and the one that knows most may be second by milliseconds."""

TIE_S = 0.002
"""Two records closer than this are a tie even on one clock: it is the time a guard needs to notice two deaths."""

LEAVING_S = 1.0
"""How long after a complaint about it a rank's end with code 0 may be noted: it closes its connections before."""

TOLD_TOGETHER_S = 2.0
"""Within this time of a preemption a process that SIGTERM has ended was told to end with its node: Slurm, and what else
ends a whole control group, sends the signal to all processes, and the task may act on it later than a rank.
"""

TOLD_BEFORE_S = 0.5
"""Within this time before its node was told to end a process that has exited, or raised, may have been told as well: it
handles SIGTERM, as scripts do that save, and its launcher ends with a code of its own.
"""

DETAILED = 8
"""Failures of the same moment that are reported with their details; of the others only the nodes are named."""


def merge(failures: Sequence[Failure]) -> list[Failure]:
    """Merge the records of each dead task, whose guard knows where in its step it was, and whose parent has its last
    output; drop records of the ring about a node that is lost to node 0 as well.
    """
    lost = {failure.node for failure in failures if failure.kind == "lost"}
    outputs = {failure.node: failure for failure in failures if failure.kind == "task-output"}
    tasks: dict[int, Failure] = {}
    others: list[Failure] = []
    for failure in failures:
        if failure.rank is None and failure.kind in ("task", "task-signal", "task-exit"):
            known = tasks.get(failure.node)
            tasks[failure.node] = failure if known is None else _of_one_task(known, failure)
        elif failure.kind != "task-output" and (failure.peer is None or lost.isdisjoint((0, failure.peer))):
            others.append(failure)
    for node, output in outputs.items():
        if node in tasks:
            tasks[node] = _of_one_task(tasks[node], output).replaced(kind=tasks[node].kind)
    # A task that ended because its own body failed has a record of that; its exit adds nothing.
    explained = {failure.node for failure in others if failure.order == EVIDENCE}
    return others + [task for node, task in tasks.items() if node not in explained or task.kind == "task-signal"]


def _of_one_task(one: Failure, other: Failure) -> Failure:
    """One record from those of the guard and the parent of a dead task: the end by the one that knows it, and by the
    guard where both do, which adds where in its step the task was; the last output by the parent, which has it.
    """
    plain, full = sorted((one, other), key=lambda record: (record.kind != "task", len(record.text)))
    return full.replaced(time=min(one.time, other.time), detail=full.detail or plain.detail)


def causes(failures: Sequence[Failure]) -> list[Failure]:
    """The record that explains the rest, or several where the clocks do not show which was first."""
    records = _without_those_told_to_end(merge(failures))
    if not records:
        return []
    order = min(record.order for record in records)
    ranked = sorted((record for record in records if record.order == order), key=lambda record: record.time)
    first = ranked[0]
    return [
        record
        for record in ranked
        if record is first
        or (record.node != first.node and record.time - first.time <= TIE_S + first.uncertainty + record.uncertainty)
    ]


def _without_those_told_to_end(records: list[Failure]) -> list[Failure]:
    """Drop the processes that SIGTERM has ended where a node was told to end at that time, or that ended by themselves
    when their own node was.
    """
    told = [record for record in records if record.kind == PREEMPTED]

    def is_told(record: Failure) -> bool:
        if record.exit_code == -signal.SIGTERM:
            return any(abs(record.time - one.time) <= TOLD_TOGETHER_S for one in told)
        is_of_process = record.kind == "exit" or (record.kind == "exception" and record.rank is not None)
        return is_of_process and any(
            record.node == one.node and abs(record.time - one.time) <= TOLD_BEFORE_S for one in told
        )

    return [record for record in records if not is_told(record)]


def ranks_that_left(first: Sequence[Failure], ended: Mapping[int, Sequence[tuple[int, float]]]) -> str:
    """A sentence about the ranks that had ended with code 0 where all that is known is that others miss one; else "".

    Parameters
    ----------
    first : sequence of Failure
        What :func:`causes` gives.
    ended : mapping
        By node, its ranks of the last launch that ended with code 0, and when.
    """
    if not first or first[0].order != PEER:
        return ""
    # A rank closes its connections before it is gone, so its end may be noted after the complaint.
    found = sorted(
        (moment, rank, node)
        for node, ranks in ended.items()
        for rank, moment in ranks
        if moment <= first[0].time + LEAVING_S and rank not in {failure.rank for failure in first}
    )
    if not found:
        return ""
    names = [
        f"rank {rank} on node {node} had ended with code 0{_before(first[0].time - moment)}"
        for moment, rank, node in found[:DETAILED]
    ]
    more = f", and {len(found) - DETAILED} more ranks" if len(found) > DETAILED else ""
    sentence = f"{', '.join(names)}{more}, while others still needed it."
    return sentence[0].upper() + sentence[1:]


def _before(seconds: float) -> str:
    return f", {seconds:.1f} s before" if seconds >= 0.05 else " at that moment"


def first_failure(first: Sequence[Failure], hostnames: Mapping[int, str]) -> dict[str, Any] | None:
    """The first of what :func:`causes` gives, as data; None where there is none."""
    return first[0].as_data(hostnames.get(first[0].node, "")) if first else None


def failure_report(failures: Sequence[Failure], hostnames: dict[int, str], left: str = "") -> str:
    """The text that every node shows: the first failure, by node, with its traceback or last output.

    ``left`` is a sentence that follows: see :func:`ranks_that_left`.
    """
    first = causes(failures)
    if not first:
        return "The gang ended without a known cause."
    parts = []
    for record in first[:DETAILED]:
        host = hostnames.get(record.node, "")
        where = f"node {record.node}" + (f" ({host})" if host else "")
        parts.append(f"{where}: {record.text}" + (f"\n{indent(record.detail)}" if record.detail.strip() else ""))
    after = f"\n{left}" if left else ""
    if len(parts) == 1:
        return "The first failure was on " + parts[0] + after
    if len(first) > DETAILED:
        more = ", ".join(str(record.node) for record in first[DETAILED : DETAILED + 100])
        parts.append(f"{len(first) - DETAILED} more, on nodes {more}" + (" ..." if len(first) > DETAILED + 100 else ""))
    return "These failed within the same moment:\n" + "\n".join("- " + part for part in parts) + after

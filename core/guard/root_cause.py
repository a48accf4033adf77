"""What failed first: failure records, the order of causes, and the story that every node tells.

A record is a :class:`Failure`; it travels between the guards as a JSON object. Order of causes:

1. evidence: death by a signal that we did not send, an exception, a non-zero exit, a task that vanished;
2. a lost connection or host;
3. an error that says "my peer is gone", from a process whose peer did fail.

Within a class the earlier one counts, by the control guard's clock; two that are closer together than their clocks can
tell apart are both named.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence

from .processes import memory_kills

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from typing import Any

EVIDENCE, LOST, PEER = 1, 2, 3

TIE_S = 0.002
"""Two records closer than this are a tie even on one clock: it is the time a guard needs to notice two deaths."""

LEAVING_S = 1.0
"""How long after a complaint about it a rank's end with code 0 may be noted: it closes its connections before."""

DIED = (
    "its container ran out of memory, which can kill all of its processes at once, or its host, its container or its "
    "guard process has died"
)
"""What may be behind a connection whose other side has ended it, or has reset it: a kernel there answered. From version
1.28 on Kubernetes ends a whole container for want of memory, and nobody is left there who could tell.
"""

CUT = f"{DIED}, or the network between them is cut"
"""What may be behind a connection on which nothing comes any more."""

_LIKELY = {"SIGKILL": " (out of memory?)", "SIGBUS": " (/dev/shm full?)"}
"""What most often lies behind a signal that nobody seems to have sent."""

DETAIL_LIMIT = 12_000
"""Characters of traceback or last output that travel in a record; beginning and end are what is kept."""

DETAIL_LINES = 400
"""Lines of it. Metaflow's console prints some thousand a second."""

_NOTE = 80
"""Characters of the line that says what is left out, and more."""

TEXT_LIMIT = 2_000
"""Characters of a clause; an exception's message may be of any length."""

LAST_LINES = 40
"""Lines of last output that a failure without a traceback shows."""

TOLD = 8
"""How many failures of the same moment are told with all they know; the others are named."""


class Failure:
    """One thing that went wrong on one node.

    ``time`` is seconds since the epoch on the clock of whoever holds the record; ``uncertainty`` what that may be off
    by. ``text`` is a clause that follows the node's name: "rank 3 was killed by SIGKILL"; ``detail`` a traceback or the
    last output; ``peer`` the node to which ``node`` lost its connection of the ring; ``teller`` the node whose task
    raises its own exception about it, ``node`` but for ranks that another node has started. (A dataclass would be
    shorter, but importing dataclasses takes the guard half of its start-up time.)
    """

    __slots__ = ("detail", "kind", "node", "order", "peer", "rank", "teller", "text", "time", "uncertainty")

    def __init__(
        self,
        node: int,
        kind: str,
        text: str,
        time: float,
        detail: str = "",
        rank: int | None = None,
        order: int = EVIDENCE,
        uncertainty: float = 0.0,
        peer: int | None = None,
        teller: int | None = None,
    ) -> None:
        self.node = node
        self.kind = kind
        self.text = text if len(text) <= TEXT_LIMIT else text[:TEXT_LIMIT] + " ..."
        self.time = time
        self.detail = shortened(detail)
        self.rank = rank
        self.order = order
        self.uncertainty = uncertainty
        self.peer = peer
        self.teller = node if teller is None else teller

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Failure:
        return cls(**{name: record[name] for name in cls.__slots__ if name in record})

    def replaced(self, **changes: Any) -> Failure:
        return Failure(**{**self.to_json(), **changes})

    def corrected(self, offset: float, uncertainty: float) -> Failure:
        """The same record on a clock that is ``offset`` seconds ahead of the one it was made on."""
        return self.replaced(time=self.time + offset, uncertainty=self.uncertainty + uncertainty)

    def __repr__(self) -> str:
        return f"Failure({self.to_json()})"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def how_it_ended(exit_code: int) -> str:
    """A clause for an exit code as :mod:`subprocess` spells it."""
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    name = signal_name(-exit_code)
    if exit_code == -signal.SIGABRT:
        return "was aborted (SIGABRT), as C++ code and os.abort() do when they give up"
    if exit_code == -signal.SIGKILL and memory_kills.ran_out():
        return f"was killed by {name}: out of memory, as the kernel has counted such a kill here in the meantime"
    return f"was killed by {name}" + _LIKELY.get(name, "")


def merge(failures: Sequence[Failure]) -> list[Failure]:
    """One record per dead task, of which its guard knows where in its step it was, and its parent what it wrote last;
    and none of the ring's about a node that is lost to node 0 as well.
    """
    lost = {failure.node for failure in failures if failure.kind == "lost"}
    words = {failure.node: failure for failure in failures if failure.kind == "task-words"}
    tasks: dict[int, Failure] = {}
    others: list[Failure] = []
    for failure in failures:
        if failure.rank is None and failure.kind in ("task", "task-signal", "task-exit"):
            known = tasks.get(failure.node)
            tasks[failure.node] = failure if known is None else _of_one_task(known, failure)
        elif failure.kind != "task-words" and (failure.peer is None or lost.isdisjoint((0, failure.peer))):
            others.append(failure)
    for node, said in words.items():
        if node in tasks:
            tasks[node] = _of_one_task(tasks[node], said).replaced(kind=tasks[node].kind)
    # A task that ended because its own body failed has told so itself; its exit adds nothing.
    told_nodes = {failure.node for failure in others if failure.order == EVIDENCE}
    return others + [task for node, task in tasks.items() if node not in told_nodes or task.kind == "task-signal"]


def _of_one_task(one: Failure, other: Failure) -> Failure:
    """What its guard and its parent say of a dead task: its end by the one that knows it, and by its guard where both
    do, which adds where in its step the task was; the last output by its parent, which has it.
    """
    plain, told = sorted((one, other), key=lambda record: (record.kind != "task", len(record.text)))
    return told.replaced(time=min(one.time, other.time), detail=told.detail or plain.detail)


def causes(failures: Sequence[Failure]) -> list[Failure]:
    """The record that explains the rest, or several where the clocks cannot tell which was first."""
    records = merge(failures)
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


def ranks_that_left(told: Sequence[Failure], ended: Mapping[int, Sequence[tuple[int, float]]]) -> str:
    """A sentence about the ranks that had ended with code 0 where all that is known is that others miss one; else "".

    Parameters
    ----------
    told : sequence of Failure
        What :func:`causes` gives.
    ended : mapping
        By node, its ranks of the last launch that ended with code 0, and when.
    """
    if not told or told[0].order != PEER:
        return ""
    # A rank closes its connections before it is gone, so its end may be noted after the complaint.
    found = sorted(
        (moment, rank, node)
        for node, ranks in ended.items()
        for rank, moment in ranks
        if moment <= told[0].time + LEAVING_S and rank not in {failure.rank for failure in told}
    )
    if not found:
        return ""
    names = [
        f"rank {rank} on node {node} had ended with code 0{_before(told[0].time - moment)}"
        for moment, rank, node in found[:TOLD]
    ]
    more = f", and {len(found) - TOLD} more ranks" if len(found) > TOLD else ""
    sentence = f"{', '.join(names)}{more}, while others still needed it."
    return sentence[0].upper() + sentence[1:]


def _before(seconds: float) -> str:
    return f", {seconds:.1f} s before" if seconds >= 0.05 else " at that moment"


def story(failures: Sequence[Failure], hostnames: dict[int, str], left: str = "") -> str:
    """What every node tells: the first failure, by node, with its traceback or last output.

    ``left`` is a sentence to be told with it: see :func:`ranks_that_left`.
    """
    told = causes(failures)
    if not told:
        return "The gang ended without a known cause."
    parts = []
    for record in told[:TOLD]:
        host = hostnames.get(record.node, "")
        where = f"node {record.node}" + (f" ({host})" if host else "")
        parts.append(f"{where}: {record.text}" + (f"\n{indent(record.detail)}" if record.detail.strip() else ""))
    after = f"\n{left}" if left else ""
    if len(parts) == 1:
        return "The first failure was on " + parts[0] + after
    if len(told) > TOLD:
        more = ", ".join(str(record.node) for record in told[TOLD : TOLD + 100])
        parts.append(f"{len(told) - TOLD} more, on nodes {more}" + (" ..." if len(told) > TOLD + 100 else ""))
    return "These failed within the same moment:\n" + "\n".join("- " + part for part in parts) + after


def indent(text: str) -> str:
    return "\n".join("  | " + line for line in text.rstrip("\n").splitlines())


def shortened(text: str, limit: int = DETAIL_LIMIT, lines: int = DETAIL_LINES) -> str:
    """``text``, without its middle where it has more than ``limit`` characters or ``lines`` lines; a line says how much
    is left out. An exception begins with where it was raised, and ends with what it says.
    """
    if len(text) <= limit and text.count("\n") < lines:
        return text
    # Cut by characters first, so that the rest never works on more than that. The line between needs some itself.
    part, part_lines = limit // 3 - _NOTE, lines // 3 - 1
    start = "".join(text[:part].splitlines(keepends=True)[:part_lines])
    rest = text[max(len(start), len(text) - 2 * part) :]
    end = "".join(rest.splitlines(keepends=True)[-2 * part_lines :])
    start = start.rstrip("\n")
    left_out = len(text) - len(start) - len(end)
    return f"{start}\n[gang] ... {left_out} characters are left out here ...\n{end}"


def last_lines(output: str) -> str:
    """The end of ``output``: what is shown of a process that left no traceback."""
    return "\n".join(output.splitlines()[-LAST_LINES:])


def said_by(rank: int, text: str) -> str:
    """Several ranks' output without what bears the number of another rank: torch writes "[rank3]: " before each line
    of a traceback.
    """
    own, other = f"[rank{rank}]: ", "[rank"
    lines = text.splitlines(keepends=True)
    mine = own.rstrip()  # lines of C++ have no space there
    return "".join(line.removeprefix(own) for line in lines if line.startswith(mine) or not _is_of_a_rank(line, other))


def _is_of_a_rank(line: str, start: str) -> bool:
    number, bracket, _ = line.removeprefix(start).partition("]:")  # a space follows only in lines of Python's
    return line.startswith(start) and bool(bracket) and number.isdecimal()


def last_traceback(output: str) -> str:
    """The last Python traceback in ``output``, chained ones included, or ""."""
    begins = "Traceback (most recent call last):"
    at = output.rfind(begins)
    if at < 0:
        return ""
    start = output.rfind("\n", 0, at) + 1
    # "During handling of ..." and "The above exception ..." join tracebacks that belong together.
    while (at := output.rfind(begins, 0, start)) >= 0:
        between = output[at:start]
        if "During handling of the above exception" not in between and "direct cause of the following" not in between:
            break
        start = output.rfind("\n", 0, at) + 1
    return output[start:].rstrip()

"""The record of one failure on one node, as it travels between the guards and into the failure report."""

from __future__ import annotations

from typing import Any

from .text import signal_name
from .tracebacks import MESSAGE_LIMIT, shortened

EVIDENCE, LOST, PEER = 1, 2, 3

PREEMPTED = "preempted"
"""Kind of the failure of a node that is asked to end; bodies may save before the gang is gone."""

OF_NODES = frozenset(
    {"lost", "task", "task-signal", "task-exit", "task-output", "deserted", "stopped", "guard", "nonsense", "restarted"}
    | {PREEMPTED}
)
"""Kinds of failures by which a node is lost as a whole, and not something that runs on it."""

UNWIND_S = 3.0
"""How long a body may take until it begins to save, and a task until it has ended after that."""

DIED = (
    "its container ran out of memory, which can kill all of its processes at once, or its host, its container or its "
    "guard process has died"
)
"""Possible reasons for a connection that the other side has ended or reset: a kernel there answered. From version
1.28 on Kubernetes ends a whole container for lack of memory, and nothing is left there that could report it.
"""

CUT = f"{DIED}, or the network between them is cut"
"""Possible reasons for a connection on which nothing comes any more."""

TEXT_LIMIT = 2_000
"""Characters of a clause; an exception's message may be of any length."""

EXCEPTION_LIMIT = 200
"""Characters of an exception's name."""

LAST_LINES, LINE_LIMIT = 8, 500
"""Of the traceback or the last output that a failure as data has: lines, and characters of each."""


def extra_s(save_s: float) -> float:
    """Seconds by which a gang's end may be later because of those who save: processes have ``save_s`` from SIGTERM to
    SIGKILL, and then the functions of ``on_preemption`` as long again.
    """
    return 2 * save_s + UNWIND_S if save_s else 0.0


class Failure:
    """One thing that went wrong on one node.

    ``time`` is seconds since the epoch on the clock of the guard that holds the record; ``uncertainty`` by how much it
    may be off. ``text`` is a clause that follows the node's name: "rank 3 was killed by SIGKILL"; ``detail`` a
    traceback or the last output; ``peer`` the node to which ``node`` lost its connection of the ring;
    ``reporting_node`` the node whose task raises its own exception about it, ``node`` but for ranks that another node
    has started; ``exit_code`` that of the process, as :mod:`subprocess` spells it, None where it is unknown or there is
    none; ``exception`` the name of what was raised, or "", and ``message`` that with the first line of its text. (A
    dataclass would be shorter, but its import takes half of the guard's start-up time.)
    """

    __slots__ = (
        "detail",
        "exception",
        "exit_code",
        "kind",
        "message",
        "node",
        "order",
        "peer",
        "rank",
        "reporting_node",
        "text",
        "time",
        "uncertainty",
    )

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
        reporting_node: int | None = None,
        exit_code: int | None = None,
        exception: str = "",
        message: str = "",
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
        self.reporting_node = node if reporting_node is None else reporting_node
        self.exit_code = exit_code
        self.exception = (exception or message.partition(":")[0])[:EXCEPTION_LIMIT]
        self.message = message[:MESSAGE_LIMIT]

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

    def as_data(self, host: str) -> dict[str, Any]:
        """The failure for programs that ask why a step failed, on node ``node`` of name ``host``; None for what it has
        not. It is what the tasks' metadata ``gang-failure`` has.
        """
        code = self.exit_code
        by_signal = code is not None and code < 0
        return {
            "node": self.node,
            "host": host or None,
            "rank": self.rank,
            "kind": self.kind,
            "exit_code": None if by_signal else code,
            "signal": -code if code is not None and by_signal else None,
            "signal_name": signal_name(-code) if code is not None and by_signal else None,
            "exception": self.exception or None,
            "message": self.message or None,
            "text": self.text,
            "last_lines": [line[:LINE_LIMIT] for line in self.detail.rstrip().splitlines()[-LAST_LINES:]],
            "time": round(self.time, 3),
        }

    def __repr__(self) -> str:
        return f"Failure({self.to_json()})"

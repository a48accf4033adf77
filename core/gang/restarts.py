"""When ranks that have failed are started again: what the user says of it, and the decision, without side effects."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..attributes import boolean, whole_number
from ..exceptions import BadAttribute
from ..guard.failure_record import PEER, Failure
from ..settings.kinds import number_of
from .arguments import runs_later

RESTARTS: dict[str, Any] = {"restarts": 0, "restart_window": 0, "restart_on": None}
"""The attributes of a decorator whose ranks may be started again, with their defaults."""

WARM: dict[str, Any] = {**RESTARTS, "warm": True}
"""The same where the gang starts the ranks itself, and these are Python."""

NEVER = frozenset({"ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "TabError"})
"""Exceptions that every try raises again, whenever they come."""

USAGE = 2
"""The exit code of argparse, and of most programs, for a wrong argument."""

_SHELLS = range(129, 193)
"""Exit codes by which a shell says that a signal has ended its program."""


@dataclass(frozen=True)
class RankFailure:
    """The first failure of a try, as ``restart_on`` gets it.

    Attributes
    ----------
    node : int
        Index of the node on which it was.
    rank : int or None
        Global rank; None where no rank is known to have failed, as where mpirun itself has.
    kind : str
        "exit", "signal", "exception" (raised, and not ended), "stopped" (SIGSTOP), "stall", or "lost", of a whole node.
    exit_code : int or None
        None where a signal has ended the process, or where that is not known.
    signal : int or None
        The number of the signal that has ended it.
    exception : str
        Name of the exception, without its module; "" where there was none.
    text : str
        What happened, as a clause: "rank 5 was killed by SIGKILL (out of memory?)".
    detail : str
        Its traceback, or its last output.
    lost_peer : bool
        Whether all that is known is that it has lost its connection to another rank.
    made_progress : bool
        Whether any rank of the try has logged something by ``gang_log``, or has run for the setting
        ``progress_seconds``.
    restarts : int
        How many restarts the call has had by then.
    """

    node: int
    rank: int | None
    kind: str
    exit_code: int | None
    signal: int | None
    exception: str
    text: str
    detail: str
    lost_peer: bool
    made_progress: bool
    restarts: int = 0

    @classmethod
    def of(cls, failure: Failure, made_progress: bool, restarts: int) -> RankFailure:
        """From the guard's record."""
        code = failure.exit_code
        by_signal = code is not None and code < 0
        return cls(
            node=failure.node,
            rank=failure.rank,
            kind=failure.kind,
            exit_code=None if by_signal else code,
            signal=-code if code is not None and by_signal else None,
            exception=failure.exception,
            text=failure.text,
            detail=failure.detail,
            lost_peer=failure.order == PEER,
            made_progress=made_progress,
            restarts=restarts,
        )


@dataclass(frozen=True)
class RestartPolicy:
    """What the user has said about restarts.

    Parameters
    ----------
    restarts : int
        How many there may be of one call of ``run()``.
    restart_window : float
        Seconds in which they are counted; 0 is the whole call.
    restart_on : callable, optional
        Gets a :class:`RankFailure`, and returns whether another try is worth it.
    warm : bool
        Whether interpreters that have imported the framework wait for the next try.
    """

    restarts: int = 0
    restart_window: float = 0.0
    restart_on: Callable[[RankFailure], bool] | None = None
    warm: bool = False

    @classmethod
    def read(cls, call: str, restarts: Any, restart_window: Any, restart_on: Any) -> RestartPolicy:
        """The values that ``call`` was given; text from a command line counts.

        Raises
        ------
        BadAttribute
        """
        number = whole_number(restarts)
        if number is None or number < 0:
            raise BadAttribute(f"{call}(restarts={restarts!r}): restarts is a whole number, 0 or more.")
        window = 0.0 if restart_window is None or restart_window == 0 else number_of(restart_window)
        if not 0.0 <= window < float("inf"):
            raise BadAttribute(
                f"{call}(restart_window={restart_window!r}): restart_window is a number of seconds, or 0 for the whole "
                "call."
            )
        if restart_on is not None and not callable(restart_on):
            raise BadAttribute(
                f"{call}(restart_on={restart_on!r}): restart_on is a function that gets what has failed and returns "
                "whether the ranks are started again."
            )
        if restart_on is not None and runs_later(restart_on):
            raise BadAttribute(
                f"{call}(restart_on={restart_on!r}): restart_on is called as a plain function. Write it as def, "
                "without async and without yield."
            )
        return cls(number, window, restart_on)

    @classmethod
    def of(cls, decorator: Any) -> RestartPolicy:
        """That of a decorator's attributes. Raises BadAttribute."""
        attributes = decorator.attributes
        policy = cls.read(f"@{decorator.name}", *(attributes[name] for name in RESTARTS))
        return replace(policy, warm=boolean(decorator, "warm")) if "warm" in attributes else policy

    def counted(self, times: Sequence[float], now: float) -> int:
        """How many of the restarts at ``times`` count at ``now``."""
        return sum(1 for time in times if not self.restart_window or now - time <= self.restart_window)

    def refusal(self, failure: RankFailure, times: Sequence[float], now: float) -> str:
        """Why there is no restart, as a sentence for the user; "" where there is one.

        Parameters
        ----------
        times : sequence of float
            When there was a restart, in seconds on the clock of ``now``.
        """
        why = beyond_help(failure) if self.restart_on is None else self._refused(self.restart_on, failure)
        if why:
            return f"The ranks were not started again: {why}."
        if self.counted(times, now) < self.restarts:
            return ""
        within = f" within {self.restart_window:g} s" if self.restart_window else ""
        return (
            f"The ranks were started again {counted_times(self.restarts)}{within}, which is all that restarts allows."
        )

    @staticmethod
    def _refused(restart_on: Callable[[RankFailure], bool], failure: RankFailure) -> str:
        """Why the user's function has the ranks not started again, as a clause; "" where it has."""
        try:
            found = restart_on(failure)
        except (Exception, SystemExit) as error:  # others end the run: KeyboardInterrupt, and what ends the body
            return f"restart_on raised {type(error).__name__}: {error}"
        if inspect.isawaitable(found):
            getattr(found, "close", bool)()  # or Python warns of a coroutine that nobody has awaited
            return f"restart_on returned {found!r:.100}, which has to be awaited, and not True or False"
        return "" if found else "restart_on decided so"

    def title(self, times: Sequence[float], now: float) -> str:
        """How the next restart is called: "restart 1 of 3"."""
        number = self.counted(times, now) + 1
        within = f" within {self.restart_window:g} s" if self.restart_window else ""
        return f"restart {number} of {self.restarts}{within}"


NO_RESTARTS = RestartPolicy()


def counted_times(number: int) -> str:
    """ "once", "twice", "3 times"."""
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def beyond_help(failure: RankFailure) -> str:
    """Why another try would fail as this one has, as a clause; "" where it may not."""
    name, code = failure.exception, failure.exit_code
    if name in NEVER:
        return f"{'an' if name[0] in 'IAE' else 'a'} {name} comes again in every try"
    if failure.lost_peer or failure.made_progress or not code or code in _SHELLS:
        return ""
    if code == USAGE and name in ("", "SystemExit"):
        return "exit code 2, before any sign of progress, is that of a wrong argument (restart_on decides otherwise)"
    what = f"{name}, raised" if name and name != "SystemExit" else f"exit code {code},"
    return f"{what} before any sign of progress, comes again in every try (restart_on decides otherwise)"


def in_one_line(failures: Sequence[Failure], hosts: Sequence[str]) -> str:
    """What failed first, for the log: "rank 5 on node 2 was killed by SIGKILL (out of memory?)".

    Parameters
    ----------
    failures : sequence of Failure
        Those of the same moment.
    hosts : sequence of str
        The nodes' hosts, which are named where they differ.
    """
    return "; ".join(_clause(failure, hosts if len(set(hosts)) > 1 else ()) for failure in failures)


def _clause(failure: Failure, hosts: Sequence[str]) -> str:
    node = f"node {failure.node}" + (f" ({hosts[failure.node]})" if failure.node < len(hosts) else "")
    text = (failure.text.splitlines() or [""])[0].rstrip(".")
    if failure.kind == "stall":
        return f"{node} {text}"
    if failure.kind == "lost":
        return f"{node} was lost: {text}"
    of_rank = re.match(r"(rank \d+) (.*)", text)
    text = f"{of_rank[1]} on {node} {of_rank[2]}" if of_rank else f"{text}, on {node}"
    is_said = failure.message in text or failure.exception == "SystemExit"  # whose code or text the clause has
    return text if is_said else f"{text} ({failure.message})"

"""``metaflow-gang logs``: the logs of all nodes of a gang, merged in the order of time, each line with its node.

Each node's task has its own log in the flow's datastore, in which the lines of its ranks are labelled ("[rank 3] ")
where it has several. Node 0 of a local gang has the lines of all nodes besides, with "[node 1] " before them; they are
stored sooner than those of the nodes' own tasks, and also where these are lost. So a line that comes from both places
is shown once.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from metaflow import Task

from .command import refuse
from .run_tasks import GangOfRun, NotFound, gangs_of

FOLLOW_S = 2.0
"""Between two looks of ``--follow``. Metaflow's client has no event for new lines, and a task on a cluster stores them
every second at first, and every 30 s after some 20 minutes.
"""

QUIET_LOOKS, QUIET_LOOKS_AT_FIRST = 2, 8
"""How many looks without a new line end ``--follow`` once the attempt is over: the last lines are stored after that. Of
a local task the whole log is, so that more are needed until each node has some.
"""

_NOTHING_YET = (
    "There is no such line in the datastore. Metaflow stores the log of a local task when the task ends, and that of a "
    "task on a cluster while it runs."
)

_OF_NODE = re.compile(r"\[node (\d+)\] ?")
_OF_RANK = re.compile(r"\[rank (\d+)\] ")


@dataclass(frozen=True)
class LogOptions:
    """What is to be shown: only lines of a rank or of a node, an attempt other than the latest, and until when."""

    rank: int | None = None
    node: int | None = None
    attempt: int | None = None
    follow: bool = False


@dataclass(frozen=True)
class Line:
    """One line: when it was printed, on which node, and whether its text comes from that node's own task."""

    moment: datetime
    node: int
    text: str
    is_own: bool

    @property
    def rank(self) -> int | None:
        """The rank that its label names; None without a label."""
        label = _OF_RANK.match(self.text)
        return int(label[1]) if label else None


class Merged:
    """The lines of a gang's tasks, each given once, though two tasks may have it."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[bool, int, int]] = Counter()

    def new(self, lines: Iterable[Line]) -> Iterator[Line]:
        """Those of ``lines`` that the other source has not had before, in the order of time."""
        for line in sorted(lines, key=lambda line: line.moment):
            text = hash(line.text.rstrip())
            own, other = (line.is_own, line.node, text), (not line.is_own, line.node, text)
            self._counts[own] += 1
            if self._counts[own] > self._counts[other]:
                yield line


def show(pathspec: str, where: str | None, options: LogOptions) -> int:
    """Print the logs of the one gang of ``pathspec``; returns the exit code.

    Parameters
    ----------
    pathspec : str
    where : str, optional
        Metaflow's metadata: "local@FOLDER" or "service@URL".
    options : LogOptions
    """
    try:
        gang = the_only(gangs_of(pathspec, where))
        if options.node is not None and options.node not in gang.tasks:
            raise NotFound(f"{gang.pathspec} has no node {options.node}: its nodes are {_listed(gang.tasks)}.")
        if options.rank is not None and options.rank < 0:
            raise NotFound(f"{gang.pathspec} has no rank {options.rank}: ranks are numbered from 0.")
        Shown(gang, gang.attempt(options.attempt), options).until_the_end()
    except NotFound as error:
        return refuse(str(error))
    return 0


def the_only(gangs: list[GangOfRun]) -> GangOfRun:
    """The gang that is meant. Raises NotFound where there are several."""
    if len(gangs) > 1:
        raise NotFound(f"There are {len(gangs)} gangs; name one: {', '.join(gang.pathspec for gang in gangs)}.")
    return gangs[0]


class Shown:
    """What is shown of one attempt of a gang, and what has been shown of it already."""

    def __init__(self, gang: GangOfRun, attempt: int, options: LogOptions) -> None:
        self._gang, self._attempt, self._options = gang, attempt, options
        self._merged = Merged()
        self._read: dict[tuple[int, str], Counter[tuple[datetime, str]]] = {}
        """By node and stream, the lines that were read. A line may come later and be older: the run, and what a backend
        starts beside the task, store their own ones."""
        self._ranks: set[int] = set()
        """Those that labels have named."""
        self._shown = self._came = 0

    def until_the_end(self) -> None:
        """Print what there is, and with ``follow`` what comes, until the attempt is over.

        Raises
        ------
        NotFound
            It is over, and no line is of the rank that was asked for.
        """
        quiet = 0
        while True:
            is_over = self._options.follow and self._is_over()
            lines = self.new_lines()
            for line in lines:
                print(f"[node {line.node}] {line.text}")
            sys.stdout.flush()
            self._shown += len(lines)
            quiet = quiet + 1 if is_over and not self._came else 0
            if not self._options.follow or quiet >= (QUIET_LOOKS if self._has_all_nodes() else QUIET_LOOKS_AT_FIRST):
                break
            time.sleep(FOLLOW_S)
            self._gang = the_only(gangs_of(self._gang.pathspec, None))  # other nodes' tasks may come later
        if not self._shown:
            nothing = self._no_such_rank()
            if nothing and self._is_over():
                raise NotFound(f"{self._gang.pathspec} has no rank {self._options.rank}: {nothing}")
            print(_NOTHING_YET, file=sys.stderr)

    def new_lines(self) -> list[Line]:
        """Those that are to be shown, and have not been given before."""
        lines = list(self._merged.new(self._stored_lines()))
        self._came = len(lines)
        self._ranks |= {line.rank for line in lines if line.rank is not None}
        return [line for line in lines if self._is_wanted(line)]

    def _has_all_nodes(self) -> bool:
        """Whether each node's task has lines: that of node 0 of a local gang is stored last."""
        return self._gang.tasks.keys() <= {node for (node, _), lines in self._read.items() if lines}

    def _is_over(self) -> bool:
        gang = self._gang
        return (
            gang.has_ended(self._attempt) is not None
            or gang.attempts > self._attempt + 1
            or gang.failure(self._attempt) is not None
        )

    def _stored_lines(self) -> Iterator[Line]:
        for node, task in sorted(self._gang.tasks.items()):
            attempt = Task(task.pathspec, attempt=self._attempt)
            for stream in ("stdout", "stderr"):
                read, found = self._read.setdefault((node, stream), Counter()), Counter[tuple[datetime, str]]()
                for moment, text in _lines(attempt, stream):
                    found[moment, text] += 1
                    if found[moment, text] > read[moment, text]:
                        yield self._line(node, moment, text)
                read |= found

    def _line(self, node: int, moment: datetime, text: str) -> Line:
        """A line of a node's task; in the log of node 0 it may be another node's."""
        label = _OF_NODE.match(text) if node == 0 else None
        if label and int(label[1]) in self._gang.tasks and int(label[1]) > 0:
            return Line(moment, int(label[1]), text[label.end() :], False)
        return Line(moment, node, text, True)

    def _is_wanted(self, line: Line) -> bool:
        options = self._options
        if options.node is not None and line.node != options.node:
            return False
        if options.rank is None or line.rank == options.rank:
            return True
        # The one rank of a node has no label, and a spare node may have the rank of another.
        return not self._ranks and line.node == (options.rank if options.node is None else options.node)

    def _no_such_rank(self) -> str:
        """What there is in place of the rank that was asked for, as a clause; "" where it may only be silent."""
        if self._options.rank is None or (not self._ranks and self._options.rank in self._gang.tasks):
            return ""
        if self._ranks:
            return f"these ranks have lines: {_listed(self._ranks)}."
        return (
            "no line names a rank. Where each node has one rank it has the node's number, and mpirun's ranks write "
            f"into the log of node 0. The nodes are {_listed(self._gang.tasks)} (--node)."
        )


def _lines(task: Any, stream: str) -> Iterator[tuple[datetime, str]]:
    for moment, text in task.loglines(stream):
        if moment is not None:
            yield moment, text


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))

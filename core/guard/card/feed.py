"""Hands snapshots of the gang to the program that keeps its card (core/card/writer.py), and starts that program.

On node 0 only. A step that is over within :data:`START_S` gets its card from its task, which has Metaflow loaded: the
last snapshot is in the reply to its last request then.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from ..node_roles import without_ranks
from ..phases import SEND_S
from ..processes.watch import TaskWatch
from ..samples.sampler import every
from ..secret_values import cleaned, secrets_of
from ..settings import settings
from . import snapshot
from .curves import Curves
from .launched import Launched
from .series import History

if TYPE_CHECKING:
    from ..hub_link.hub_access import HubAccess
    from ..loop.event_loop import Loop, Timer
    from ..loop.framing import Header
    from ..node_roles import NodeRoles

    class Failures(Protocol):
        """What has failed."""

        @property
        def report(self) -> Header | None:
            """The failure report, once there is one."""

        @property
        def roles(self) -> NodeRoles:
            """Which nodes have no ranks, or those of another place."""

    class Samples(Protocol):
        """Where samples come from."""

        def of_all_nodes(self) -> dict[int, Header]:
            """The newest sample of each node, with its ``ranks``; the first call has the nodes send theirs."""


START_S = 5.0
"""After the gang's opening: who trains does not notice then that a program imports Metaflow for a second."""

LAST_S = 5.0
"""What the task waits for the last store of its card. It takes some 0.1 s with S3; a datastore that takes longer than
this has no right to hold the step up."""

SUCCEEDED, FAILED = "succeeded", "failed"


class CardFeed:
    """The card of one gang.

    Parameters
    ----------
    err : int
        Descriptor for what the program complains about.
    """

    def __init__(self, loop: Loop, hub: HubAccess, failures: Failures, samples: Samples, err: int) -> None:
        self._loop, self._hub, self._failures, self._samples, self._err = loop, hub, failures, samples, err
        self._program: Header | None = None
        self._head: Header = {}
        self._hosts: dict[int, str] = {}
        self._cpus: dict[int, int] = {}
        self._history: History | None = None
        self._curves = Curves()
        self._launched = Launched({})
        self._secrets: list[str] = []
        self._newest: dict[int, Header] = {}
        self._opened = time.time()
        self._num_nodes = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._unsent = b""
        self._timer: Timer | None = None
        self._is_over = False

    def begin(self, program: Header, num_nodes: int) -> None:
        """The gang is opened.

        Parameters
        ----------
        program : dict
            ``argv``, ``env`` and ``cwd`` of the program, and ``head``: what does not change on the card.
        """
        self._program, self._head, self._num_nodes = program, program["head"], num_nodes
        self._launched = Launched(program["env"])
        self._secrets = secrets_of(program["env"])
        self._opened = time.time()
        self._timer = self._loop.call_later(START_S, self._start)

    def all_joined(self, nodes: list[Header]) -> None:
        """All nodes have joined."""
        self._hosts = {index: str(node.get("hostname", "")) for index, node in enumerate(nodes)}
        self._cpus = {index: int(node.get("cpus") or 1) for index, node in enumerate(nodes)}

    def launched(self, plan: Header) -> None:
        """A launcher has started ranks on this node."""
        if self._program is not None:
            self._launched.add(plan)

    def end(self, then: Callable[[Header | None], None]) -> None:
        """Metaflow has stored the task: have the last state of the gang stored.

        Parameters
        ----------
        then : callable
            Called once it is stored, at the latest after :data:`LAST_S`; with the snapshot where the task is to store
            it.
        """
        if self._program is None or self._is_over:
            then(None)
            return
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        last = self._snapshot(FAILED if self._failures.report is not None else SUCCEEDED)
        if self._process is None:
            then(last)
            return
        done = [False]

        def ended() -> None:
            if not done[0]:
                done[0] = True
                then(None)

        TaskWatch(self._loop, self._process.pid, ended)
        self._loop.call_later(LAST_S, ended)
        self._send_last(last)

    def end_now(self) -> None:
        """The guard ends, and its task could not have the last state stored: wait for that here."""
        if self._program is None or self._is_over:
            return
        self._is_over = True
        try:
            process = self._process or self._started()
            self._send_last(self._snapshot(FAILED))
            process.wait(settings().log_store_timeout)
        except (OSError, subprocess.TimeoutExpired):
            pass  # a card is no reason to hold up the end

    def _start(self) -> None:
        try:
            self._process = self._started()
        except OSError:
            self._program = None  # no process can be started: the card is not worth a line
            return
        self._tick()

    def _started(self) -> subprocess.Popen[bytes]:
        assert self._program is not None
        process = subprocess.Popen(
            self._program["argv"],
            env=self._program["env"],
            cwd=self._program["cwd"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._err,
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        self._process = process
        return process

    def _tick(self) -> None:
        self._send(self._snapshot(""))
        age = time.time() - self._opened
        self._timer = self._loop.call_later(max(every(age), 0.005 * self._num_nodes) + SEND_S, self._tick)

    def _send(self, what: Header) -> None:
        """Hand over a snapshot, unless the program has not read the one before."""
        self._flush()
        if not self._unsent:
            self._unsent = _line(what)
            self._flush()

    def _send_last(self, what: Header) -> None:
        """Hand over the last snapshot. What is under way is finished first: lines are whole."""
        self._unsent += _line({**what, "final": True})
        process = self._process
        if process is not None and process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), True)  # the program reads in a thread of its own
            self._flush()
            with contextlib.suppress(OSError):
                process.stdin.close()

    def _flush(self) -> None:
        process = self._process
        if process is None or process.stdin is None:
            return
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(process.stdin.fileno(), self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:  # the program has ended: it complained, if it could
            self._unsent = b""

    def _snapshot(self, state: str) -> Header:
        now = time.time()
        phases = self._hub.link.phases_of_nodes()
        started = snapshot.first_start(phases, self._opened)
        self._remember(self._samples.of_all_nodes())
        failure = snapshot.failure(self._failures.report)
        roles = self._failures.roles
        out = roles.left_out.keys()
        rows = snapshot.ranks(self._records(), now, self._failures.report, bool(state), out)
        gpus = snapshot.gpus({node: sample for node, sample in self._newest.items() if node not in out})
        series: Header = {"start": now, "every": every(0.0), "values": {}}
        if self._history is not None:
            series = self._history.as_series()
        series["start"] -= started  # the page counts from the start
        found = {
            **self._head,
            "state": state or ("failed" if failure else "running" if self._hosts else "forming"),
            "started": started,
            "now": now,
            "nodes": snapshot.nodes(self._hosts, self._num_nodes, phases, started, without_ranks(roles, started)),
            "roles": roles.records(),
            "roles_in_all": len(roles),
            "ranks_in_all": max(self._launched.ranks, sum(1 for row in rows if row["node"] not in out)),
            "ranks_running": sum(1 for row in rows if row["runs"]),
            "ranks": rows,
            "gpus_in_all": len(gpus),
            "gpus": snapshot.shown_gpus(gpus),
            "series": series,
            "curves": self._curves.as_dict(),
            "failure": failure,
            "stall": snapshot.stall(self._hub.link.stalled(), now),
            "restarts": snapshot.restarts(self._hub.link.restarts()),
            "launches": self._launched.records,
            "settings": settings().as_dict(),
            "traces": snapshot.traces(self._hub.link.traces()),
        }
        # A rank's last line and a failure may quote one.
        return dict(cleaned(found, self._secrets))

    def _remember(self, newest: dict[int, Header]) -> None:
        """Take the newest samples. What ranks did last is kept: the one that failed is gone from its node's next."""
        for node, sample in newest.items():
            if sample.get("ranks") or node not in self._newest:
                self._newest[node] = sample
            if self._history is None:
                self._history = History(self._num_nodes, sample["at"], every(0.0), snapshot.PERCENTS)
            self._curves.add(sample.get("log", ()))
            if node < self._num_nodes:
                self._history.add(sample["at"], node, snapshot.metrics(sample, self._cpus.get(node, 1)))

        self._curves.mark()

    def _records(self) -> Iterator[tuple[int, Header]]:
        return ((node, record) for node, sample in self._newest.items() for record in sample.get("ranks", ()))


def _line(what: Header) -> bytes:
    return json.dumps(what, separators=(",", ":")).encode() + b"\n"

"""The steps that every launcher's ``run()`` has: arguments, a port, the launch, and what comes back of it.

A launcher makes one :class:`Runs` for each gang; what it starts is its own. See CONTRIBUTING.md, "Add a launcher".
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..dry_run.call import planning
from ..exceptions import GangException, PortTaken, ProcessFailed
from ..gang.arguments import Complain, check_alike, differ
from ..gang.gang import Gang
from ..gang.launch_plan import LaunchPlan
from ..gang.programs import pause_ranks
from ..gang.restarts import NO_RESTARTS, RestartPolicy
from ..gang.spares.worlds import Worlds
from ..gang.tries import Again, Tries
from ..logs import say
from .between_tries import meet_again
from .entrypoint import Entrypoint, read_entrypoint
from .local_process import explain
from .returns import Results, result_of_run

PORT_TRIES = 5
"""How often a launch is tried, each time on another port, where foreign programs take the port that was chosen."""

Explain = Callable[[ProcessFailed, str, str], Exception]
"""Makes the step's exception of a failed process, of what was running, and of where: "node 1", "this machine"."""


@dataclass(frozen=True)
class PortTry:
    """One try of a launch whose processes meet on a port.

    Parameters
    ----------
    port : int
    is_ours : bool
        Whether another port may be chosen where a foreign program has this one; then the plan needs ``port_taken``.
    key : str
        What all nodes call this try: for the plan, and for the names of its files.
    restartable : bool
        Whether the plan has to be: its ranks may be started again.
    variables : mapping
        What says so in the ranks' environment.
    warm : bool
        Whether the plan is to be ``warm``.
    """

    port: int
    is_ours: bool
    key: str
    restartable: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    warm: bool = False


class Runs:
    """What the calls of one launcher's ``run()`` on one node have in common, for the time of a gang.

    Parameters
    ----------
    gang : Gang
    failed : type
        What the launcher raises where a process failed.
    flow_datastore, results_prefix
        Where results go, as :meth:`GangDecorator.results_prefix` gives it; not needed without results.
    explains : callable, optional
        Makes the exception of a failed process; :func:`~.local_process.explain` with ``failed`` by default.
    policy : RestartPolicy
        Whether, and how often, ranks that failed are started again.
    worlds : Worlds, optional
        Which nodes have ranks, where the gang goes on without those that it loses.

    Attributes
    ----------
    gang : Gang
    count : int
        How many calls have begun. Every node counts the same.
    """

    def __init__(
        self,
        gang: Gang,
        failed: type[GangException],
        flow_datastore: Any = None,
        results_prefix: str = "",
        explains: Explain | None = None,
        policy: RestartPolicy = NO_RESTARTS,
        worlds: Worlds | None = None,
    ) -> None:
        self._policy, self._worlds = policy, worlds
        self.count = self._launches = 0
        self.gang, self._failed = gang, failed
        self._flow_datastore, self._results_prefix = flow_datastore, results_prefix
        self._explains = explains or partial(explain, failed=failed)
        self._shown: set[str] = set()
        self._leased: set[int] = set()

    def results(
        self, push: bool, local_output_dir: str | os.PathLike[str] | None, cloud_output_dir: str | None
    ) -> Results:
        """The folder of results that the user wants pushed. Raises BadAttribute where it is not valid."""
        return Results.read(self._flow_datastore, self._results_prefix, push, local_output_dir, cloud_output_dir)

    def entrypoint(
        self,
        entrypoint: str | os.PathLike[str] | Callable[..., Any] | None,
        entrypoint_args: Mapping[str, Any] | Sequence[Any] | None,
        flags: Mapping[str, str | None] | None = None,
        options: str = "entrypoint_args",
        number_lines: bool = False,
    ) -> contextlib.AbstractContextManager[Entrypoint]:
        """The checked entrypoint for a ``with`` block, which removes at its end what was written for it.

        Parameters are those of :func:`~core.calls.entrypoint.read_entrypoint`. Raises BadAttribute, before the block.
        """
        what = read_entrypoint(entrypoint, entrypoint_args, flags or {}, self.gang.folder, options, number_lines)
        return removed(what)

    def agree(
        self,
        own: Mapping[str, Any],
        alike: Sequence[str] = (),
        complain: Complain = differ,
    ) -> list[Mapping[str, Any]]:
        """Give this node's values of the call to all nodes, and get those of each; None of a node that is lost, where
        the gang goes on without it. Every node must call it.

        Parameters
        ----------
        own : mapping
            This node's values.
        alike : sequence of str
            The keys whose values have to be the same on all nodes.
        complain : callable, optional
            Makes the message of a key, node 0's value, another node's value and that node's index.

        Raises
        ------
        BadAttribute
            The nodes differ; the message is the same on each.
        """
        answers = self.gang.all_gather({**own, "dry_run": planning() is not None})
        if self._worlds is not None:
            self._worlds.lose(answers)
        check_alike(answers, ("dry_run",))
        check_alike(answers, alike, complain)
        return answers

    @property
    def nodes(self) -> tuple[int, ...]:
        """The nodes that have the ranks, by node rank."""
        return tuple(range(self.gang.num_nodes)) if self._worlds is None else self._worlds.now.nodes

    @property
    def has_spares(self) -> bool:
        """Whether these may change, since the gang goes on without nodes that it loses."""
        return self._worlds is not None

    @property
    def place(self) -> int | None:
        """This node's rank among :attr:`nodes`; None where it has no ranks, and waits."""
        return self.nodes.index(self.gang.node_index) if self.gang.node_index in self.nodes else None

    def port(self, wanted: int | None, node: int = 0, first: int | None = None) -> int | None:
        """The port of node ``node`` on which the ranks meet; None on all other nodes, which get it by :meth:`agree`.

        Parameters
        ----------
        wanted : int, optional
            The user's own. It is leased until the gang ends, so that a later call has it already.
        node : int
            Where the port is: on the node of rank 0.
        first : int, optional
            A port that is leased already, for the first call.

        Raises
        ------
        BadAttribute
            ``wanted`` is not to be had.
        """
        if self.gang.node_index != node:
            return None
        if wanted is None:
            return self.gang.free_port() if first is None else first
        if wanted not in self._leased:
            self.gang.lease_port(exact=wanted)
            self._leased.add(wanted)
        return wanted

    def agreed_port(self, wanted: int | None, node: int = 0) -> int:
        """As :meth:`port`, but the port on every node, to which ``node`` broadcasts it. Every node must call it."""
        return int(self.gang.broadcast(self.port(wanted, node), source=node))

    def launch(
        self,
        start: Callable[[PortTry], object],
        what: Entrypoint,
        port: int,
        is_ours: bool,
        node: int = 0,
        where: str = "",
        would_be: Callable[[PortTry], LaunchPlan] | None = None,
    ) -> None:
        """Launch on every node, on other ports of node ``node`` where foreign programs take those that were chosen, and
        again where ranks fail that may be started again. Every node must call it.

        Parameters
        ----------
        start : callable
            Makes the plan of one try, and calls :meth:`Gang.launch` with it; its last collective comes before that
            where the try is ``restartable``.
        what : Entrypoint
            What runs, for the message of a failure.
        port, is_ours
            The port of the first try, and whether it was chosen here, and not by the user.
        node : int
            Where the port is.
        where : str
            What a message calls the place of a failed process; this node where "".
        would_be : callable, optional
            Makes the plan that a node without ranks would have if it got some, for interpreters that wait.

        Raises
        ------
        GangException
            A process of this node failed. A function's own exception is raised as it is.
        """
        planned, count = planning(), self._launches + 1
        if planned is None:
            self._launches = count  # a dry run has the names of the launch that comes after it
        elif self.place is None:
            planned.add_waiting(is_spare=self._worlds is not None and self.gang.node_index in self._worlds.now.spares)
        elif port:
            planned.add_port(port, node)
        tries, ports = Tries(self.gang, self._policy, worlds=self._worlds), 1
        for number in itertools.count():
            key = f"run-{count}-{number}"
            may_be_taken = is_ours and ports < PORT_TRIES
            again = tries.has_restarts
            attempt = PortTry(port, may_be_taken, key, again, tries.variables(), again and self._policy.warm)
            waits = attempt.warm and self.place is None and would_be is not None and planned is None
            if waits and would_be is not None:
                pause_ranks(self.gang._link, would_be(attempt))
            try:
                tries.run(partial(start, attempt))
                if waits:
                    pause_ranks(self.gang._link, None)
                return
            except PortTaken:
                ports += 1
                port = self.agreed_port(None, node)
            except Again:
                ports = 1
                port = meet_again(self.gang, what, self.port(None, node) if is_ours else None) or port
            except ProcessFailed as failure:
                error = self._explains(failure, what.name, where or f"node {self.gang.node_index}")
                raise error from error.__cause__

    def result(self, what: Entrypoint, nprocs: Sequence[int], results: Results | None = None) -> Any:
        """What ``run()`` returns: see :func:`~.returns.result_of_run`. Every node must call it."""
        results = results or Results(self._flow_datastore)
        return result_of_run(self.gang, what, nprocs, results, self._failed, self.place, self._policy.restarts > 0)

    def show_variables(self, variables: Mapping[str, str]) -> None:
        """Write into the log, once for each, the variables that the ranks get since the user has set none."""
        new = [f"{name}={value}" for name, value in variables.items() if name not in self._shown]
        if new:
            say(f"Set for the ranks, since you set none: {', '.join(new)}")
            self._shown.update(variables)


@contextlib.contextmanager
def removed(what: Entrypoint) -> Iterator[Entrypoint]:
    """Remove at the block's end what was written for ``what``."""
    try:
        yield what
    finally:
        with contextlib.suppress(FileNotFoundError):  # the guard's end may have removed the folder
            what.remove()

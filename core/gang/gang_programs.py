"""The part of ``current.gang`` that runs programs to their end: on this node, or on all nodes together."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from ..dry_run.call import is_wanted, show_instead
from ..exceptions import GangException
from ..guard_client.link import Link
from .arguments import check_alike, check_plan, command
from .collectives import LOST, Member, gather, gather_to_all
from .launch_plan import LaunchPlan, ProcessResult
from .programs import refuse_after_the_body, run_to_their_end
from .restarts import RankFailure, RestartPolicy
from .spares.world import named
from .tries import Again, Tries


class Starter(Member, Protocol):
    """What is needed of the gang to start programs."""

    def launch(self, plan: LaunchPlan) -> list[ProcessResult]: ...

    def gather(self, value: Any, root: int = 0) -> list[Any] | None: ...

    def barrier(self) -> None: ...


class Programs:
    """See :class:`.gang.Gang`."""

    _link: Link

    def run(
        self,
        argv: str | Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        check: bool = True,
    ) -> int:
        """Run a program on this node and wait for it; its output goes to this node's log as it comes.

        The program and everything it starts end with the gang. It is not a collective: any node may call it alone.

        Parameters
        ----------
        argv : str or sequence of str
            The program, or the program and its arguments. No shell is involved.
        env : mapping of str to str, optional
            Added to the task's environment.
        cwd : path, optional
            Working folder; the task's own by default.
        check : bool
            Whether a program that fails fails the gang. With False its exit code is returned.

        Returns
        -------
        int
            The exit code; negative for a signal.

        Raises
        ------
        ProcessFailed
            With ``check``, when it did not exit with 0.

        Example
        -------
        >>> current.gang.run(["./simulate", "--seed", str(current.gang.node_index)])
        """
        return self.launch(LaunchPlan((command(argv, env, cwd),), check=bool(check)))[0].exit_code

    def launch(self, plan: LaunchPlan) -> list[ProcessResult]:
        """Run a launcher's plan on this node; how its processes ended, in the plan's order.

        Raises
        ------
        ProcessFailed
            When a process of this node has failed.
        PortTaken
            On every node, when a foreign program holds the plan's port.
        GangException
            The body has ended.
        """
        refuse_after_the_body(self._link, "Starting a program")
        check_plan(plan, "current.gang.launch")
        return run_to_their_end(self._link, plan)

    def run_together(
        self: Starter,
        argv: str | Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        restarts: int = 0,
        restart_window: float = 0.0,
        restart_on: Callable[[RankFailure], bool] | None = None,
        dry_run: bool = False,
    ) -> None:
        """Run a program on every node, all at once, and wait until it has ended on all. Every node must call it.

        With ``restarts`` one that fails does not fail the gang: the program ends on all nodes, and is started again on
        all, with the number of restarts in GANG_RESTART (docs/restarts.md).

        Parameters
        ----------
        argv, env, cwd
            As in :meth:`run`; nodes may give different ones.
        restarts : int
            How often it is started again.
        restart_window : float
            Seconds in which restarts are counted; 0 is the whole call.
        restart_on : callable, optional
            Gets what has failed, and returns whether the program is started again.
        dry_run : bool
            Whether what would start is only shown, in the log of node 0 (docs/dry-runs.md). Nothing starts.

        Raises
        ------
        BadAttribute
            An argument that is not valid, or nodes that differ in restarts, restart_window or dry_run. Nothing was
            started.
        ProcessFailed
            It has failed on this node.
        GangException
            On every node: one was lost before its program had ended, in a gang that goes on without lost nodes.

        Example
        -------
        >>> current.gang.run_together(["python", "train.py"], restarts=3)
        """
        call = "current.gang.run_together"
        policy = RestartPolicy.read(call, restarts, restart_window, restart_on)
        command(argv, env, cwd, call)
        tries = Tries(self, policy)
        values = {"restarts": policy.restarts, "restart_window": policy.restart_window, "dry_run": is_wanted(dry_run)}
        nodes = gather_to_all(self, "run_together()", values)
        check_alike(nodes, tuple(values), _differ)
        name = f"together-{next(self._sequence)}"  # the same on all nodes, which have come to the same collective
        with show_instead(self, dry_run, f"{call}()"):
            for number in itertools.count():
                process = command(argv, {**(env or {}), **tries.variables()}, cwd, call)
                plan = LaunchPlan((process,), key=f"{name}-{number}", restartable=tries.has_restarts)
                try:
                    tries.run(partial(self.launch, plan))
                except Again:
                    gather(self, "run_together()", None)  # nothing of the last try is left on any node
                else:
                    ended = gather_to_all(self, "run_together()", None, LOST)
                    _refuse_losses([node for node, end in enumerate(ended) if end is LOST and nodes[node] is not None])
                    return


def _refuse_losses(lost: Sequence[int]) -> None:
    if lost:
        raise GangException(
            f"current.gang.run_together(): {named(lost)} {'was' if len(lost) == 1 else 'were'} lost before the program "
            "had ended there, and no other node takes its place in this call."
        )


def _differ(name: str, first: object, other: object, node: int) -> str:
    return (
        f"The nodes call current.gang.run_together() differently: {name} is {first!r} on node 0 and {other!r} on node "
        f"{node}. Give every node the same."
    )

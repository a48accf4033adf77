"""A launcher's ``run()`` on this machine alone, in a step or script without a gang."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..dry_run.call import show_instead
from ..exceptions import GangException, ProcessFailed
from ..gang.launch_plan import LaunchPlan
from ..guard_client.single_node import SingleNodeGuard, single_node_guard
from ..ranks.functions import load_return, read_returns
from .entrypoint import Entrypoint
from .local_process import explain
from .returns import without_return
from .run import Explain, removed


def run_on_one_node(
    read: Callable[[SingleNodeGuard], Entrypoint],
    plan: Callable[[SingleNodeGuard, Entrypoint], LaunchPlan],
    ranks: int,
    failed: type[GangException],
    explains: Explain | None = None,
    dry_run: bool = False,
) -> list[Any] | None:
    """A launcher's ``run()`` on this machine alone, in a step or script without a gang.

    Parameters
    ----------
    read : callable
        Reads the entrypoint, given the guard, whose ``folder`` is private.
    plan : callable
        Makes the plan; what it writes belongs into that folder.
    ranks : int
        How many ranks the plan has, where the entrypoint is a function.
    failed, explains
        As in :class:`Runs`.
    dry_run : bool
        Whether the plan is only shown, and None is returned.

    Returns
    -------
    list or None
        What the ranks returned, in their order, where the entrypoint is a function.

    Raises
    ------
    GangException
        ``failed``, where a rank failed or did not return. A function's own exception is raised as it is.
    GuardDied
        The process that watches over the ranks was killed; they were ended.
    """
    with (
        single_node_guard() as guard,
        show_instead(None, dry_run, "run()") as planned,
        removed(read(guard)) as what,
    ):
        try:
            launch = plan(guard, what)
            if planned:
                planned.add_processes(launch.processes)
                return None
            guard.launch(launch)
        except ProcessFailed as failure:
            error = (explains or partial(explain, failed=failed))(failure, what.name, "this machine")
            raise error from error.__cause__
        if what.call is None:
            return None
        returns = read_returns(what.call)
        if len(returns) != ranks:
            raise failed(without_return(what.call.name, returns, 0, ranks))
        return [load_return(value) for value in returns.values()]

"""What a launcher may change in the life of a gang: the attributes and methods that its decorator overrides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ..exceptions import GangInterrupt
from ..gang.gang import Gang


class LauncherHooks:
    """The defaults of all hooks: with them the body runs on every node, and nothing besides it."""

    runs_on_control_only = False
    """Whether the body runs on node 0 only, and the other nodes wait until it ends."""

    interrupt: ClassVar[type[GangInterrupt]] = GangInterrupt
    """What is raised in an interrupted body; a framework may let only exceptions of certain classes pass."""

    peer_lost: ClassVar[tuple[str, ...]] = ()
    """Regular expressions; an exception of the body that has one is the consequence of another node's failure."""

    aborts_with_others: ClassVar[bool] = False
    """Whether the framework may end the task by itself, at any moment, once another node is gone."""

    replaces_sigterm: ClassVar[bool] = False
    """Whether the framework's C code replaces our handler of SIGTERM."""

    sigterm_module: ClassVar[str] = ""
    """The module of the framework that replaces it by Python's ``signal.signal``; "" where there is none."""

    distributions: ClassVar[tuple[str, ...]] = ()
    """Names under which pip may have installed what the launcher starts; their versions are compared across nodes."""

    def ranks(self, gpus: int, cpus: int) -> int:
        """How many ranks a node with so many GPUs and processors will have, as far as that is known before the body."""
        return max(gpus, 1)

    def check_attributes(self) -> None:
        """Raise :class:`BadAttribute` for a wrong attribute. Called before anything is scheduled."""

    def preflight(self) -> None:
        """Raise :class:`ToolMissing` where this node lacks what the launcher starts. Called before the gang forms."""

    def offer(self, free_port: Callable[[], int]) -> dict[str, Any]:
        """Values for all nodes, which read them by :func:`.gang.offered`. Called on node 0 before it joins.

        They arrive with the list of nodes, without a collective.

        Parameters
        ----------
        free_port : callable
            Leases a port of node 0; see :meth:`Gang.free_port`.

        Returns
        -------
        dict
            Of JSON's types, some hundred bytes at most.
        """
        return {}

    def form(self, gang: Gang) -> dict[str, object]:
        """Return what appears on ``current`` besides ``gang``. May use collectives: every node calls it."""
        return {}

    def leave(self, ok: bool) -> None:
        """Close what the body may have left open. Called after the body, before what :meth:`form` started is ended.

        Parameters
        ----------
        ok : bool
            Whether the body has ended without an exception.
        """

    def advice(self, error: BaseException) -> str:
        """A sentence that says what to do about ``error``, which the body has raised; "" where there is none."""
        return ""

    def tolerates_lost_nodes(self, num_nodes: int) -> bool:
        """Whether the step, on ``num_nodes`` nodes, goes on without others that are lost after the body has begun.

        Where the body :attr:`runs_on_control_only`, whatever fails on another node ends that node alone; else only the
        loss of a node as a whole does, and collectives have None of it. The join step does not get the task of a lost
        node.
        """
        return False

    def may_leave_out(self, num_nodes: int) -> int:
        """How many of ``num_nodes`` nodes the step can do without from the start, since they did not join, or their
        preflight has failed.

        :func:`~.gang.left_out` says in :meth:`form` which these are. Those that lack what the launcher starts, or have
        another version of this package, end as lost nodes do; those that have joined besides run the body as all nodes.
        """
        return 0

"""``current.gang``: this node, the other nodes, and what user code may have the gang do."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..exceptions import BadAttribute, GangException
from ..gang_log import gang_log
from ..guard_client.link import Link
from .arguments import check_plan, check_save, pattern_of, private_folder, seconds_of, whole
from .collectives import LOST, check_index, gather, gather_to_all
from .gang_programs import Programs
from .launch_plan import LaunchPlan, Process
from .node import Node
from .programs import start_in_background
from .stacks import Stacks

SCRATCH = "scratch"
"""The name of :attr:`Gang.scratch` in the private folder."""

SCRATCH_VARIABLE = "METAFLOW_GANG_SCRATCH"

TRACES = "traces"
"""The name of :attr:`Gang.traces` in the private folder."""

TRACES_VARIABLE = "METAFLOW_GANG_TRACES"


@dataclass(frozen=True)
class Gang(Programs):
    """``current.gang``: this node's view of the gang while the step's body runs.

    Parameters
    ----------
    node_index : int
        This node; 0 is control.
    nodes : tuple of Node
        All nodes, by index.
    folder : str
        A private folder of this node and attempt, removed when the gang ends.

    Example
    -------
    >>> losses = current.gang.all_gather(loss)      # on every node
    """

    node_index: int
    nodes: tuple[Node, ...]
    folder: str
    _link: Link = field(repr=False, compare=False)
    _only_on_control: str = field(default="", repr=False, compare=False)
    """The decorator, where it has the body run on node 0 alone, so that the others never come to a collective."""
    _save_functions: list[Callable[[], object]] = field(default_factory=list, repr=False, compare=False)
    """What :meth:`on_preemption` registers; the step calls them."""
    _offer: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What node 0's decorator gave to all nodes as they joined; see :meth:`LauncherHooks.offer`."""
    _left_out: dict[int, str] = field(default_factory=dict, repr=False, compare=False)
    """The nodes that cannot take part or did not join, where the launcher can do without, and why."""
    _sequence: Iterator[int] = field(default_factory=lambda: itertools.count(), repr=False, compare=False)

    @property
    def num_nodes(self) -> int:
        """How many nodes the gang has."""
        return len(self.nodes)

    @property
    def main_address(self) -> str:
        """Where the other nodes reach control."""
        return self.nodes[0].address

    @property
    def node(self) -> Node:
        """This node."""
        return self.nodes[self.node_index]

    @property
    def is_control(self) -> bool:
        """Whether this is node 0."""
        return self.node_index == 0

    @property
    def scratch(self) -> str:
        """A folder of this node for files that ranks need again after a restart, such as checkpoints.

        Ranks find it in the variable ``METAFLOW_GANG_SCRATCH``. It is below TMPDIR, or /tmp, and removed with the gang.
        """
        return os.path.join(self.folder, SCRATCH)

    @property
    def traces(self) -> str:
        """A folder of this node for traces of torch's profiler: what ranks write there is stored when the body is over.

        Ranks find it in the variable ``METAFLOW_GANG_TRACES``. The card lists the traces, and the command
        ``metaflow-gang traces`` fetches them.
        """
        return os.path.join(self.folder, TRACES)

    def another_address(self) -> str:
        """The address of some other node, to find out how it is reached; this node's own where it is alone."""
        others = self.nodes[1:] if self.is_control else ()
        return next((node.address for node in others if node.address), self.main_address)

    def barrier(self) -> None:
        """Wait until every node has called it.

        The body is interrupted, and the step raises :class:`GangFailed`, when a node cannot come any more.
        """
        gather(self, "barrier()", None)

    def all_gather(self, value: Any) -> list[Any]:
        """Give ``value`` to all nodes and get the values of all, by node index. Every node must call it.

        Parameters
        ----------
        value : any picklable
            Of any size; a large one travels encrypted, beside the control connections. Where the gang goes on without
            lost nodes, the value of a node that was lost before it gave one is None.

        Raises
        ------
        ValueTooStrange
            When ``value`` cannot be pickled.

        Example
        -------
        >>> ports = current.gang.all_gather(current.gang.free_port())
        """
        return gather_to_all(self, "all_gather()", value)

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        """Give ``value`` to node ``root`` alone, which gets the values of all, by node index; the others get None.

        Every node must call it. See :meth:`all_gather` for the values.

        Example
        -------
        >>> parts = current.gang.gather(part)      # a list on node 0, None elsewhere
        """
        root = check_index(self, "gather", "root", root)
        return gather(self, f"gather(root={root})", value, root)

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """Get the ``value`` that node ``source`` gave. Every node must call it; what the others give is not sent.

        Parameters
        ----------
        value : any picklable
            Only that of node ``source`` counts.
        source : int
            Index of the node whose value it is.

        Raises
        ------
        GangException
            On every node: ``source`` was lost before it gave one, in a gang that goes on without nodes that it loses.
        """
        source = check_index(self, "broadcast", "source", source)
        found = gather_to_all(self, "broadcast()", value if self.node_index == source else None, LOST)[source]
        if found is LOST:
            raise GangException(f"broadcast(): node {source}, whose value it is, was lost before it gave one.")
        return found

    def log(self, step: float, **values: Any) -> None:
        """Log numbers at a step, as ``loss=0.3``, for the card of the gang. Ranks call ``metaflow.gang_log`` instead.

        It takes microseconds and never raises.
        """
        gang_log(step, **values)

    def stacks(self) -> Stacks:
        """Where the ranks and bodies of all nodes stand now, also as text. Any node may call it, from any thread."""
        return Stacks.of(self._link.request("stacks")[0])

    def free_port(self) -> int:
        """A port of this node that no other program has and no other gang of this user gets, until the gang ends."""
        return int(self.lease_port())

    def lease_port(self, exact: int | None = None) -> int:
        """As :meth:`free_port`, or the very port ``exact``; raises :class:`BadAttribute` where it is not to be had."""
        return lease_port(self._link, exact)

    def own_folder(self, path: str) -> None:
        """Make a folder outside of :attr:`folder`, as in shared memory, for this user alone; removed with the gang.

        Raises
        ------
        OSError
            It cannot be made, or is there and somebody else's, or has files in it that are not of this gang.
        """
        self._link.request("own", path=private_folder(path, self.folder))

    def own_files(self, pattern: str) -> None:
        """When the gang ends, remove files that killed programs have left.

        Only those of this user that are made after this call, and that no process uses then.

        Parameters
        ----------
        pattern : str
            Of paths, as in :mod:`glob`.
        """
        self._link.request("own", pattern=pattern_of(pattern))

    def start(self, process: Process, ready: str, timeout: float = 30.0, shown: bool = False) -> None:
        """Start a program of this node that runs beside the body, until the gang ends; returns when it is ready.

        The exception of a failure has the end of its output. Once it is ready, its unexpected end fails the gang,
        whatever its exit code. It is not a collective: any node may call it alone.

        Parameters
        ----------
        process : Process
            What to run. It must stay in the foreground: what it leaves behind ends with it.
        ready : str
            Regular expression that says, in its output of either stream, that it is ready.
        timeout : float
            Seconds that it may take until then.
        shown : bool
            Whether its output goes to this node's log.

        Raises
        ------
        ProcessFailed
            When it ended before it was ready. The gang goes on if this is caught.
        GangException
            When it was not ready in time, and so was ended. The gang goes on if this is caught.
        BadAttribute
            When ``ready`` is not a regular expression, ``process`` no process, or ``timeout`` no time.

        Example
        -------
        >>> server = Process(("redis-server", "--port", str(port)), dict(os.environ), title="redis")
        >>> current.gang.start(server, ready="Ready to accept connections")
        """
        call = "current.gang.start"
        check_plan(LaunchPlan((process,)), call)
        timeout = seconds_of(call, "timeout", timeout, "how long it may take to be ready")
        start_in_background(self._link, self.node_index, process, ready, timeout, bool(shown))

    def on_preemption(self, save: Callable[[], object], seconds: float = 30.0) -> None:
        """Have ``save`` called before the gang ends because one of its nodes has to end: its task got SIGTERM, or its
        machine is taken away. The step then fails, on every node, and @retry starts it again.

        On every node that has registered one, the body is interrupted, what the gang runs there is ended, ``save`` is
        called in the step's own process, and the step fails when that is done on all nodes. The other members of
        ``current.gang`` that need the gang cannot be used any more then. It is not a collective.

        Parameters
        ----------
        save : callable without arguments
            What it raises is shown in the log. Several functions are called in the order in which they were registered.
        seconds : float
            How long the programs that the gang runs, ranks included, may take from SIGTERM to their end; then all
            ``save`` functions of a node have the same time once more. The largest that any node gave counts for all.

        Raises
        ------
        BadAttribute
            ``save`` cannot be called, or ``seconds`` is no time.

        Example
        -------
        >>> current.gang.on_preemption(lambda: torch.save(model.state_dict(), "/mnt/shared/last.pt"))
        """
        check_save(save)
        time = seconds_of("current.gang.on_preemption", "seconds", seconds, "how long saving may take")
        self._link.request("save-seconds", seconds=time)
        self._save_functions.append(save)


def offered(gang: Gang) -> Mapping[str, Any]:
    """What the launcher of node 0 gave to all nodes as they joined; see :meth:`LauncherHooks.offer`."""
    return gang._offer


def own_left_by_tries(gang: Gang, pattern: str) -> None:
    """Before ranks are started again, remove files and folders that killed ranks have left. Their paths match
    ``pattern``, below :attr:`Gang.folder` or a folder of :meth:`Gang.own_folder`.
    """
    gang._link.request("own", left_by_tries=pattern)


def left_out(gang: Gang) -> Mapping[int, str]:
    """The nodes without which the launcher is to begin, and why; see :meth:`LauncherHooks.may_leave_out`."""
    return gang._left_out


def lease_port(link: Link, exact: int | None = None) -> int:
    """See :meth:`Gang.lease_port`; before there is a gang, too."""
    if exact is not None:
        exact = whole("lease_port", "exact", exact, "a port is a number from 1 to 65535", 1, 65535)
    header, _ = link.request("port", exact=exact)
    if "error" in header:
        raise BadAttribute(header["error"])
    return int(header["port"])

"""What a launcher wants run, as data: no process is started here.

A launcher's ``plan`` returns a :class:`LaunchPlan`; :meth:`Gang.launch` hands it to this node's guard, which
starts the processes, pumps their output and ends them with all their descendants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Process:
    """One process of this node.

    Parameters
    ----------
    argv : tuple of str
        Program and arguments; the program is looked up on the PATH of ``env``.
    env : mapping of str to str
        The complete environment. Nothing is added from the guard's or the task's own.
    cwd : str, optional
        Working folder; the task's own where None.
    title : str
        How a failure calls the process: "rank 3", "mpirun".
    rank : int, optional
        Global rank, where the process is one.
    label : str
        Put before each line on the way to the task's stdout and stderr, e.g. "[rank 3] ". Output of a process without
        a label passes byte for byte.
    error_file : str, optional
        Where the process, or torch's ``@record``, leaves its traceback as JSON; with "{rank}" in it, where each rank
        that a process with a ``report`` starts does.
    delay : float
        Seconds by which the program starts later than those without.
    records_exceptions : bool
        Whether it writes every exception, and every ``sys.exit()`` with another code than 0, into its error file, so
        that an exit without any is known as that of ``os._exit()`` or of a library.
    leaves_ends : bool
        Whether every rank that it starts leaves files beside ``error_file`` when it ends, as
        :mod:`core.ranks.rank_wrapper` does.
    report : str, optional
        Regular expression with the groups ``rank`` (or ``title``, where it starts no ranks) and ``exit_code``, and
        ``node`` where ranks may be on other nodes, found in the last output of a process that itself starts others and
        reports which of them failed first.
    report_grace : float, optional
        Seconds that such a process gets, once the report is in its stderr, to end by itself; it has failed either way.
        It is only looked for at the end where this is None.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None = None
    title: str = "command"
    rank: int | None = None
    label: str = ""
    error_file: str | None = None
    report: str | None = None
    report_grace: float | None = None
    delay: float = 0.0
    records_exceptions: bool = False
    leaves_ends: bool = False


@dataclass(frozen=True)
class LaunchPlan:
    """The processes that one call of a launcher runs on this node, all at once.

    Parameters
    ----------
    processes : tuple of Process
        Started together. The launch is over when all have ended with 0, or as soon as one has not.
    grace : float, optional
        Seconds between SIGTERM and SIGKILL when they are ended; None is the setting ``kill_grace``.
    peer_lost : tuple of str
        Regular expressions, found in a failed process's last output, that say "another process failed, not I".
    port_taken : str, optional
        Regular expression that says a foreign program holds the port this plan chose. Such a failure ends the launch
        on every node with :class:`PortTaken` instead of ending the gang, so that the launcher can choose another.
    key : str
        What all nodes call this launch, the same on each; needed with ``port_taken`` and ``restartable``.
    restartable : bool
        Whether a process that fails ends this launch alone, on every node; see :class:`.restarts.Tries`.
    nodes : tuple of int
        The nodes that it runs on, where the gang goes on without others: it ends on all when one of these is lost.
    warm : str
        Modules, with commas between them, that interpreters import, and then wait, which take the places of ranks that
        are started again; none where "". For processes that run ``rank_main.py``.
    check : bool
        Whether a process that fails fails the gang. Where False its exit code is only returned.
    """

    processes: tuple[Process, ...]
    grace: float | None = None
    peer_lost: tuple[str, ...] = ()
    port_taken: str | None = None
    key: str = ""
    restartable: bool = False
    nodes: tuple[int, ...] = ()
    warm: str = ""
    check: bool = True

    def to_json(self) -> dict[str, Any]:
        """What the guard gets of it."""
        record = asdict(replace(self, processes=()))
        record["processes"] = [{**vars(process), "env": dict(process.env)} for process in self.processes]
        return record


@dataclass(frozen=True)
class ProcessResult:
    """How one process of a plan ended: ``exit_code`` as in :mod:`subprocess`, negative for a signal."""

    title: str
    rank: int | None
    exit_code: int
    tail: str = field(default="", repr=False)

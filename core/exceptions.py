"""What can go wrong, as users see it.

    MetaflowException
    `- GangException                 catch this one for everything below
       |- BadAttribute               a mistake in an attribute or argument; nothing was started
       |- MetaflowChanged            this Metaflow lacks an internal part that the gang uses
       |- ToolMissing                the image lacks what the launcher starts
       |- GuardDied                  this node's guard is gone, and with it the connection to the others
       |- GangFailed                 the gang ended because of another node; the message names the first failure
       |- ProcessFailed              a process of this node failed: title, rank, exit_code, tail, traceback
       |- Unreachable                preflight="full": a node does not reach another one; the message names both
       |- PortTaken                  a foreign program holds a port that was chosen; launchers try another
       |- ValueTooStrange            a value that cannot be sent to the other nodes
       |- BroadcastFailed            nodes that did not get a file; the message names each, with the reason
       |- DryRunEnds                 a dry run comes to where nothing can go on without what it has not started
       |- ObjectNotFound             what was asked for is not in the datastore
       `- TorchrunException          @torchrun: a rank failed (launchers have exceptions of their own)
          `- TorchNotInstalledException   also a ToolMissing

    BaseException
    `- GangInterrupt                 raised inside an interrupted step body; becomes GangFailed around it

User mistakes and failures of others carry no traceback of ours: the message says what happened, where, and what to do.
"""

from __future__ import annotations

import copyreg
from typing import Any

from metaflow.exception import MetaflowException

from .guard.text import how_it_ended, indent, last_lines


class GangException(MetaflowException):  # type: ignore[misc]
    """Base of everything that this package raises."""

    headline = "Gang"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Metaflow's exception leaves `args` empty, and a copy would be made by calling the class without arguments.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class BadAttribute(GangException):
    """An attribute or argument that is not valid; the message says what can."""

    headline = "Wrong use of a gang decorator"


class ToolMissing(GangException):
    """Something that the launcher needs is not in this node's image or environment."""

    headline = "Missing in this environment"


class MetaflowChanged(GangException):
    """This Metaflow lacks an internal part that the gang uses; the message names it, and what to install."""

    headline = "Metaflow has changed"


class GangFailed(GangException):
    """Another node failed first; the message is the failure report that every node shows."""

    headline = "The gang failed"


class GuardDied(GangException):
    """This node's guard is gone, and with it the connection to the others."""

    headline = "The gang failed"


class Unreachable(GangException):
    """A node of the gang does not reach another one, as ``preflight="full"`` has found; the message names both."""

    headline = "The network between the nodes"


class PortTaken(GangException):
    """The port that was chosen for a launch is held by a foreign program."""

    headline = "Port in use"


class ValueTooStrange(GangException):
    """A value cannot be sent to the other nodes: pickle cannot write it, or not read it there."""

    headline = "Cannot be sent to the other nodes"


class BroadcastFailed(GangException):
    """Some nodes did not get a file; the message names each of them, with its address and the reason."""

    headline = "A file is not on all nodes"


class DryRunEnds(GangException):
    """A dry run (METAFLOW_GANG_DRY_RUN) comes to where nothing can go on without what it has only shown."""

    headline = "Dry run"


class ProcessFailed(GangException):
    """A process that this node's guard ran has failed.

    Attributes
    ----------
    title : str
        "rank 3", "command".
    rank : int or None
    exit_code : int
        As in :mod:`subprocess`: negative for a signal.
    ended : str
        The same as a clause: "was killed by SIGSEGV", "called sys.exit(3)".
    tail : str
        Its last output, both streams.
    traceback : str
        The Python traceback it left, or "".
    detail : str
        What every node reports of its end: the traceback, else its last lines.
    error_file : str or None
    """

    headline = "A process of the gang failed"

    def __init__(self, record: dict[str, Any]) -> None:
        self.title: str = record["title"]
        self.rank: int | None = record["rank"]
        self.exit_code: int = record["exit_code"]
        self.ended: str = record.get("ended") or how_it_ended(self.exit_code)
        self.tail: str = record["tail"]
        self.traceback: str = record.get("traceback", "")
        self.error_file: str | None = record.get("error_file")
        self.detail: str = record.get("detail") or self.traceback or last_lines(self.tail)
        super().__init__(self.describe())

    def describe(self) -> str:
        """What happened, with the traceback or else the last lines of output."""
        detail = self.detail
        return f"{self.title} {self.ended}" + (f":\n{indent(detail)}" if detail.strip() else ".")


class GangInterrupt(BaseException):
    """Ends an interrupted body past every ``except Exception``; the gang's wrapper turns it into
    :class:`GangFailed`.
    """


def package_missing(step: str, title: str, package: str) -> str:
    """What a :class:`ToolMissing` says where a step's framework is not in its environment."""
    return (
        f'Step *{step}* needs {title}, and its environment has none. Add @pypi(packages={{"{package}": "..."}}) to the '
        "step and run the flow with --environment=pypi, or give @kubernetes or @batch an image that has it; on your "
        f"own machine: pip install {package if package.isidentifier() else repr(package)}."
    )

"""The dry run of one call: its plans are collected on each node instead of being started, and shown on node 0.

Every plan comes to :mod:`core.gang.programs`, which asks :func:`is_shown_instead`. So what is shown is what the guard
would get.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from ..logs import say_together
from ..settings.table import DRY_RUN
from .planned import Command, Planned


class Member(Protocol):
    """What a dry run needs of the gang."""

    @property
    def node_index(self) -> int: ...

    @property
    def nodes(self) -> Sequence[Any]: ...

    def gather(self, value: Any, root: int = 0) -> list[Any] | None: ...

    def barrier(self) -> None: ...


def is_wanted(argument: bool) -> bool:
    """Whether a call is a dry run, by its argument or by the setting METAFLOW_GANG_DRY_RUN."""
    return bool(argument) or DRY_RUN.read()


_PLANNED: ContextVar[Planned | None] = ContextVar("what the dry run of a call would start on this node", default=None)


@contextlib.contextmanager
def show_instead(gang: Member | None, wanted: bool, call: str, alone: bool = False) -> Iterator[Planned | None]:
    """For a block in which a launcher starts programs: where it is a dry run, they are shown at its end instead.

    Parameters
    ----------
    gang : Member or None
        None where there is no gang.
    wanted : bool
        The argument ``dry_run``. The setting METAFLOW_GANG_DRY_RUN asks for it as well.
    call : str
        How the user calls it: "current.torch.run()".
    alone : bool
        Whether this node alone comes here, as where the body runs on node 0; otherwise every node must.

    Yields
    ------
    Planned or None
        What is to be shown of this node; None where programs do start.
    """
    if not is_wanted(wanted):
        yield None
        return
    planned = Planned(os.environ)
    before = _PLANNED.set(planned)
    try:
        yield planned
    finally:
        _PLANNED.reset(before)
    own = planned.lines or ["  nothing"]
    texts: list[list[str]] | None = [own] if gang is None or alone else gang.gather(own)
    if texts is not None:
        texts = [text or ["  nothing: the node is lost"] for text in texts]
        _show(call, [gang.nodes[node].address if gang is not None else "" for node in range(len(texts))], texts)
    if gang is not None and not alone:
        gang.barrier()  # a node that fails now would end the gang before node 0 has shown it


def _show(call: str, addresses: Sequence[str], texts: Sequence[Sequence[str]]) -> None:
    shown = [f"Dry run of {call}: nothing is started. This would start:"]
    for node, (address, lines) in enumerate(zip(addresses, texts, strict=True)):
        shown += [f"node {node} ({address})" if address else "this machine", *lines]
    say_together(shown)


def planning() -> Planned | None:
    """What the dry run of this call would start so far; None in a call that starts programs."""
    return _PLANNED.get()


def is_shown_instead(processes: Sequence[Command]) -> bool:
    """Whether this is a dry run, so that ``processes``, which have been noted or shown, are not to be started."""
    planned = planning()
    if planned is not None:
        planned.add_processes(processes)
        return True
    if not DRY_RUN.read():
        return False
    alone = Planned(os.environ)
    alone.add_processes(processes)
    say_together(["Dry run (METAFLOW_GANG_DRY_RUN): nothing is started. This would start here:", *alone.lines])
    return True

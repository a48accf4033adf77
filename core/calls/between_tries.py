"""What all nodes do between two tries of a launch, when nothing of the first is left on any of them."""

from __future__ import annotations

from ..gang.gang import Gang
from ..ranks.torch_extensions import hold_again, let_go
from .entrypoint import Entrypoint


def meet_again(gang: Gang, what: Entrypoint | None, port: int | None) -> int | None:
    """Remove what the first try has left, and agree on the next one's port. Every node must call it.

    Parameters
    ----------
    what : Entrypoint, optional
        What runs; what it has returned is forgotten.
    port : int, optional
        A new one of this node; None on all nodes but one, or where none is chosen.

    Returns
    -------
    int or None
        The port of the node that has given one.
    """
    if what is not None:
        what.forget_returns()
    answers = [answer for answer in gang.all_gather((port, let_go())) if answer is not None]
    hold_again()
    if any(has_locks for _, has_locks in answers):
        gang.barrier()  # or a node's ranks would build while another node removes locks
    return next((given for given, _ in answers if given is not None), None)

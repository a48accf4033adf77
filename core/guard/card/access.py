"""The place where the parts of a node find the card of its gang. Without one, as on most nodes, it does nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..hub_link.hub_access import HubAccess
    from ..loop.event_loop import Loop
    from ..loop.framing import Header
    from .feed import CardFeed, Failures, Samples


class CardAccess:
    """The card of one node's gang; see :class:`.feed.CardFeed`.

    Attributes
    ----------
    samples : Samples or None
        Where samples come from.
    """

    def __init__(self, loop: Loop, hub: HubAccess, failures: Failures, err: int) -> None:
        self.samples: Samples | None = None
        self._loop, self._hub, self._failures, self._err = loop, hub, failures, err
        self._feed: CardFeed | None = None

    def begin(self, program: Header, num_nodes: int) -> None:
        """Node 0 opens the gang, which is to have a card."""
        from .feed import CardFeed  # not for nodes that have none

        assert self.samples is not None
        self._feed = CardFeed(self._loop, self._hub, self._failures, self.samples, self._err)
        self._feed.begin(program, num_nodes)

    def all_joined(self, nodes: list[Header]) -> None:
        """All nodes have joined."""
        if self._feed is not None:
            self._feed.all_joined(nodes)

    def launched(self, plan: Header) -> None:
        """Ranks have been started on this node."""
        if self._feed is not None:
            self._feed.launched(plan)

    def end(self, then: Callable[[Header | None], None]) -> None:
        """The task is stored; ``then`` once its card is, with the last snapshot where the task is to store it."""
        if self._feed is None:
            then(None)
        else:
            self._feed.end(then)

    def end_now(self) -> None:
        """The guard ends."""
        if self._feed is not None:
            self._feed.end_now()

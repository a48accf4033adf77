"""The request for samples: how busy this node is, and on node 0 every node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..state import FORMING

if TYPE_CHECKING:
    from ...children.child import Child
    from ...children.supervisor import Work
    from ...hub_link.hub_access import HubAccess
    from ...loop.event_loop import Loop
    from ...loop.framing import Header
    from ...samples.sampler import Sampler
    from ..identity import NodeIdentity
    from ..state import NodeState
    from .dispatch import Method
    from .pending_requests import PendingRequests


BEGIN_S = 1.0
"""After the guard's start: what samples is loaded then, and the first sample taken two seconds later."""


class SampleRequests:
    """Samples the node, and hands the samples out."""

    def __init__(
        self,
        loop: Loop,
        identity: NodeIdentity,
        state: NodeState,
        hub: HubAccess,
        pending: PendingRequests,
        work: Work,
    ) -> None:
        self._loop, self._identity, self._state, self._hub = loop, identity, state, hub
        self._pending, self._work = pending, work
        self._sampler: Sampler | None = None
        self._num_nodes = 0  # once node 0 has asked
        self._has_asked = False
        self._on_sample: Callable[[dict[str, Any]], None] | None = None
        loop.call_later(BEGIN_S, self._begin)

    def _begin(self) -> None:
        try:
            from ...samples.sampler import Sampler
        except (ImportError, OSError):  # no descriptor is left: no reason to end a gang
            return
        self._sampler = Sampler(self._loop, self._identity.folder, self._running, self._hub.send)
        self._sampler.send_to_node_0(self._num_nodes)
        self._sampler.on_sample = self._on_sample
        self._sampler.start()

    def _running(self) -> Iterator[Child]:
        return iter(self._work.children)

    def export_to(self, on_sample: Callable[[dict[str, Any]], None]) -> None:
        """Have ``on_sample`` take each sample; see :class:`...samples.sampler.Sampler`."""
        self._on_sample = on_sample
        if self._sampler is not None:
            self._sampler.on_sample = on_sample

    def methods(self) -> dict[str, Method]:
        return {"samples": self.samples}

    def samples(self, number: int, header: Header, payload: bytes) -> None:
        """The reply has the ``samples`` of this node that are newer than ``since`` (epoch), what its ``ranks`` do now,
        and with ``gang``, on node 0, the newest sample and the ranks of each node in ``nodes``, by index.

        The first request with ``gang`` has the nodes send their samples from then on.
        """
        if header.get("gang"):
            self._ask()
        since, nodes = header.get("since", 0.0), self._hub.link.samples() if header.get("gang") else {}
        reply: Header = {"samples": [], "ranks": [], "nodes": nodes}
        if self._sampler is not None:
            reply["samples"] = [sample for sample in self._sampler.ring.samples if sample["at"] > since]
            reply["ranks"] = self._sampler.ranks()
        self._pending.reply(number, reply)

    def of_all_nodes(self) -> dict[int, Header]:
        """The newest sample of each node with its ranks; the first call once all have joined has them send theirs."""
        self._ask()
        return {int(node): sample for node, sample in self._hub.link.samples().items()}

    def gpu(self) -> tuple[float, float]:
        """Percent of the time in which the busiest GPU computed, and in which it used its memory, as far as known."""
        samples = self._sampler.ring.samples if self._sampler is not None else []
        gpus = samples[-1].get("gpus", []) if samples else []
        busiest = [max((float(gpu.get(name) or 0.0) for gpu in gpus), default=0.0) for name in ("util", "memory_util")]
        return busiest[0], busiest[1]

    def _ask(self) -> None:
        if not self._has_asked and self._state.value != FORMING:
            self._has_asked = True
            self._hub.send({"op": "watch-samples"})

    def watch(self, num_nodes: int) -> None:
        """Node 0 has asked for the samples of all ``num_nodes`` nodes."""
        self._num_nodes = num_nodes
        if self._sampler is not None:
            self._sampler.send_to_node_0(num_nodes)

"""The requests that have the node's metrics exported, and exported for the last time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...export.node_export import NodeExport
    from ...loop.event_loop import Loop
    from ...loop.framing import Header
    from ...phases import NodePhases
    from ..cleanup import Cleanup
    from ..node_failures import NodeFailures
    from .dispatch import Method
    from .pending_requests import PendingRequests
    from .sample_requests import SampleRequests


class ExportRequests:
    """Each method does what the request of its name asks for. Without the first nothing is loaded."""

    def __init__(
        self,
        loop: Loop,
        pending: PendingRequests,
        samples: SampleRequests,
        cleanup: Cleanup,
        failures: NodeFailures,
        phases: NodePhases,
        say: Callable[[str], None],
    ) -> None:
        self._loop, self._pending, self._samples, self._cleanup = loop, pending, samples, cleanup
        self._failures, self._phases, self._say = failures, phases, say
        self._export: NodeExport | None = None

    def methods(self) -> dict[str, Method]:
        return {"export": self.export, "export-last": self.export_last}

    def export(self, number: int, header: Header, payload: bytes) -> None:
        """Export the metrics of this node from now on; see :class:`...export.node_export.NodeExport`."""
        from ...export.node_export import NodeExport

        self._export = export = NodeExport(self._loop, header, self._phases, self._failures, self._say)
        self._samples.export_to(export.sampled)
        self._cleanup.servers.append(export)
        if header["file"]:
            self._cleanup.owned.add_file(header["file"])
        self._pending.reply(number, {})

    def export_last(self, number: int, header: Header, payload: bytes) -> None:
        """Metaflow has stored the task. The reply comes when the last state is exported."""
        assert self._export is not None
        self._export.end(lambda: self._pending.reply(number, {}))

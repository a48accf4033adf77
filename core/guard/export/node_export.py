"""What one node exports: its newest sample, its phases and its failure, into a file and to OpenTelemetry's program."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from . import points
from .metrics_file import MetricsFile
from .otlp_feed import OtlpFeed

if TYPE_CHECKING:
    from ..loop.event_loop import Loop
    from ..loop.framing import Header

    class Phases(Protocol):
        """The phases of this node."""

        def as_dict(self) -> Header: ...

    class Failures(Protocol):
        """What has failed."""

        @property
        def report(self) -> Header | None: ...


class NodeExport:
    """The exports of one node, of which there may be one or both.

    Parameters
    ----------
    request : dict
        ``resource`` (attributes of all metrics), ``cpus`` (processors of the node), ``file`` (a path, or "") and
        ``program`` (see :class:`.otlp_feed.OtlpFeed`, or None).
    """

    def __init__(
        self, loop: Loop, request: Header, phases: Phases, failures: Failures, say: Callable[[str], None]
    ) -> None:
        self._phases, self._failures, self._cpus = phases, failures, request["cpus"]
        self._of_sample: list[points.Point] = []
        self._file = MetricsFile(request["file"], request["resource"], say) if request["file"] else None
        program = request["program"]
        self._feed = OtlpFeed(loop, program, lambda: {"points": self.points()}, say) if program else None
        self._is_over = False

    def points(self) -> list[points.Point]:
        """All metrics now."""
        report = self._failures.report
        failure = (report or {}).get("failure")
        return [*self._of_sample, *points.of_state(self._phases.as_dict(), failure)]

    def sampled(self, sample: dict[str, Any]) -> None:
        """There is a new sample."""
        if self._is_over:
            return
        self._of_sample = list(points.of_sample(sample, self._cpus))
        if self._file is not None:
            self._file.write(self.points())
        if self._feed is not None:
            self._feed.send()

    def end(self, then: Callable[[], None]) -> None:
        """The task is stored: the file goes, and the last state is exported; ``then`` after that."""
        if self._is_over:
            then()
            return
        self._is_over = True
        if self._file is not None:
            self._file.remove()
        if self._feed is None:
            then()
        else:
            self._feed.end(then)

    def close(self) -> None:
        """The guard ends, and its task could not have this ended."""
        if self._is_over:
            return
        self._is_over = True
        if self._file is not None:
            self._file.remove()
        if self._feed is not None:
            self._feed.end_now()

"""The waits and limits that a site may change, as the guard has them: node 0's count on all nodes.

``core/settings.py`` reads and checks them in the task, and says what each is for. They come with the task's request
``setup``; those of node 0 come to the other nodes with the list of nodes.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from collections.abc import Mapping

DEFAULTS: dict[str, float] = {
    "lost_host_timeout": 30.0,
    "frozen_node_timeout": 60.0,
    "end_timeout": 30.0,
    "body_grace": 2.0,
    "kill_grace": 0.5,
    "unkillable_timeout": 30.0,
    "stopped_timeout": 10.0,
    "report_wait": 1.0,
    "drain_timeout": 5.0,
    "handshake_timeout": 5.0,
    "log_store_timeout": 10.0,
    "transfer_connections": 64,
}
"""In seconds, but for the last, which is a number of connections."""


class Settings:
    """The settings of the gang of this process, by their names. There is one for the process: a guard has one gang."""

    __slots__ = tuple(DEFAULTS)

    if TYPE_CHECKING:
        lost_host_timeout: float
        frozen_node_timeout: float
        end_timeout: float
        body_grace: float
        kill_grace: float
        unkillable_timeout: float
        stopped_timeout: float
        report_wait: float
        drain_timeout: float
        handshake_timeout: float
        log_store_timeout: float
        transfer_connections: int

    def __init__(self) -> None:
        self.take(DEFAULTS)

    def take(self, values: Mapping[str, float] | None) -> None:
        """Replace those that are in ``values``. Raises ValueError or TypeError for what is no number."""
        for name, value in (values or {}).items():
            if name in DEFAULTS:
                setattr(self, name, type(DEFAULTS[name])(value))

    def as_dict(self) -> dict[str, float]:
        """All of them, as :meth:`take` reads them."""
        return {name: getattr(self, name) for name in DEFAULTS}


SETTINGS = Settings()

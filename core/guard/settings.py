"""The waits and limits that a site may change, as the guard has them: node 0's count on all nodes.

``core/settings/table.py`` reads and checks them in the task, and says what each is for. The guard's process has one
value of them, which is frozen, and is replaced as a whole at two moments: by those that come with the task's request
``setup``, and by those of node 0, which come with the list of nodes when all have joined.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn


class Settings:
    """The settings of one gang. The class attributes are the defaults, in seconds, but for ``transfer_connections``;
    0 is off.

    Parameters
    ----------
    values : mapping of str to float
        By name; those that are missing have their defaults, and unknown names do not count. Raises ValueError or
        TypeError for what is no number.
    """

    lost_host_timeout: float = 30.0
    frozen_node_timeout: float = 60.0
    stall_timeout: float = 0.0
    end_timeout: float = 30.0
    body_grace: float = 2.0
    kill_grace: float = 0.5
    unkillable_timeout: float = 30.0
    stopped_timeout: float = 10.0
    report_wait: float = 1.0
    drain_timeout: float = 5.0
    handshake_timeout: float = 5.0
    log_store_timeout: float = 10.0
    transfer_stall_timeout: float = 60.0
    broadcast_stall_timeout: float = 30.0
    progress_seconds: float = 60.0
    gpu_memory_timeout: float = 30.0
    transfer_connections: int = 64

    def __init__(self, values: Mapping[str, float]) -> None:
        self.__dict__.update((name, type(usual)(values.get(name, usual))) for name, usual in DEFAULTS.items())

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name} is a setting, which does not change: see use_settings().")

    def as_dict(self) -> dict[str, float]:
        """All of them, by name."""
        return dict(self.__dict__)


DEFAULTS: dict[str, float] = {name: getattr(Settings, name) for name in Settings.__annotations__}
"""The defaults, by name."""

_now = Settings({})


def settings() -> Settings:
    """Those that count in this process now. Call it where a value is needed, not before: node 0's may still come."""
    return _now


def use_settings(values: Mapping[str, float]) -> None:
    """Have ``values`` count in this process from now on; see :class:`Settings`."""
    global _now
    _now = Settings(values)

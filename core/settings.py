"""The settings METAFLOW_GANG_...: the waits and limits that a site may change, for all of its flows.

Each is an environment variable of node 0's task, or an entry of Metaflow's configuration file. Where a setting is an
attribute of the decorators too, the attribute comes first. ``docs/settings.md`` is made of the table in here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .exceptions import BadAttribute
from .guard.settings import DEFAULTS
from .metaflow_compat.configuration import configured

DAY_S = 86_400.0


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes
    ----------
    name : str
        METAFLOW_GANG_<NAME>.
    purpose, origin : str
        What it is for, and where its default comes from; sentences for the page.
    default, above, most : float
        It is greater than ``above``, and at most ``most``.
    unit : str
        "seconds", "megabytes", "connections".
    whole : bool
        Whether it is a whole number.
    attribute : bool
        Whether the decorators have an attribute of this name.
    """

    name: str
    purpose: str
    origin: str
    default: float
    above: float
    most: float = DAY_S
    unit: str = "seconds"
    whole: bool = False
    attribute: bool = False

    @property
    def variable(self) -> str:
        """The name of the environment variable, and of the entry in a configuration file."""
        return f"METAFLOW_GANG_{self.name.upper()}"

    @property
    def bounds(self) -> str:
        """What it may be: "a number of seconds greater than 0 and at most 86400"."""
        kind = "whole number" if self.whole else "number"
        return f"a {kind} of {self.unit} greater than {self.above:.10g} and at most {self.most:.10g}"

    def read(self) -> float:
        """Its value. Raises BadAttribute, with name, value and bounds, for any other."""
        value = configured(f"GANG_{self.name.upper()}")
        return self.default if value in (None, "") else self.checked(value, f"{self.variable}={value}: it")

    def checked(self, value: Any, what: str) -> float:
        """``value``, also as text, as a number. Raises BadAttribute, which begins with ``what``, for any other."""
        found = number_of(value)
        if not self.above < found <= self.most or (self.whole and found != int(found)):
            raise BadAttribute(f"{what} is {self.bounds}.")
        return found


def number_of(value: Any) -> float:
    """A number, or text that is one; NaN for anything else."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


def _guard(name: str, above: float, most: float, purpose: str, origin: str, **more: Any) -> Setting:
    """A setting that the guard has."""
    return Setting(name, purpose, origin, DEFAULTS[name], above, most, **more)


TABLE = (
    Setting(
        "all_nodes_started_timeout",
        "In this time all nodes must have joined.",
        "A cluster that adds machines first needs minutes.",
        600.0,
        0.0,
        7 * DAY_S,
        attribute=True,
    ),
    _guard(
        "end_timeout",
        0.0,
        DAY_S,
        "What Metaflow and other decorators do after a body may take this long once the gang has failed.",
        "Enough for a card and what a step usually stores; an upload of many gigabytes needs more.",
        attribute=True,
    ),
    _guard(
        "lost_host_timeout",
        2.0,
        DAY_S,
        "A host that does not answer for this long ends the gang.",
        "An interruption of the network that is shorter than two thirds of it ends nothing.",
        attribute=True,
    ),
    _guard(
        "frozen_node_timeout",
        2.0,
        DAY_S,
        "A node that does not answer for this long, while its host does, ends the gang.",
        "Twice the time of a lost host: what is paused may go on.",
        attribute=True,
    ),
    _guard(
        "body_grace",
        0.0,
        3600.0,
        "An interrupted body may take this long for its `finally` blocks before it is shown and killed.",
        "It is meant for closing files and connections.",
    ),
    _guard(
        "kill_grace",
        0.0,
        3600.0,
        "Between SIGTERM and SIGKILL for ranks, commands and what a body has left; a launcher may give more.",
        "A rank that hangs in a collective does not receive SIGTERM, so that waiting gains nothing.",
    ),
    _guard(
        "unkillable_timeout",
        0.0,
        DAY_S,
        "A process that is not gone this long after SIGKILL is named, and not waited for any more.",
        "One that waits in the kernel for a disk or a driver may go on meanwhile; another user's will not.",
    ),
    _guard(
        "stopped_timeout",
        1.0,
        DAY_S,
        "A process that is stopped (SIGSTOP) for this long ends the gang.",
        "What only looks into a process stops it for a moment; a debugger's stop does not count.",
    ),
    _guard(
        "report_wait",
        0.1,
        2.5,
        "After the first failure, node 0 waits this long for what other nodes know of it.",
        "A death is known within milliseconds; nodes wait 3 s for node 0's report.",
    ),
    _guard(
        "drain_timeout",
        0.5,
        DAY_S,
        "The last output of a process that has ended is passed on for this long to a slow reader.",
        "Metaflow's runtime needs a second for 10,000 lines.",
    ),
    _guard(
        "handshake_timeout",
        0.5,
        600.0,
        "A connection must have proved the gang's secret in this time.",
        "It takes milliseconds where neither machine is overloaded.",
    ),
    _guard(
        "log_store_timeout",
        1.0,
        DAY_S,
        "Storing the other local nodes' logs may take this long where node 0's task is dead.",
        "Metaflow is imported for it; a slow datastore needs more.",
    ),
    _guard(
        "transfer_connections",
        0.0,
        10_000,
        "Connections that a node serves at once with large values and files; others wait.",
        "Each is a thread of the guard.",
        unit="connections",
        whole=True,
    ),
    Setting(
        "log_megabytes",
        "This much of each stream of another local node is stored as its task's log; of a longer one the middle is "
        "left out.",
        "Metaflow's client reads a log as a whole.",
        64.0,
        0.0,
        float(1 << 20),
        unit="megabytes",
    ),
)

BY_NAME = {setting.name: setting for setting in TABLE}


def guard_settings(attributes: Mapping[str, Any]) -> dict[str, float]:
    """All that the guard has, as its request ``setup`` takes them: ``attributes`` of these names come first.

    Raises
    ------
    BadAttribute
    """
    own = {name: attributes[name] for name in DEFAULTS if attributes.get(name) is not None}
    return {name: float(own[name]) if name in own else BY_NAME[name].read() for name in DEFAULTS}

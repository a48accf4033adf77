"""The settings METAFLOW_GANG_...: the waits and limits that a site may change, for all of its flows.

Each is an environment variable of node 0's task, or an entry of Metaflow's configuration file. Where a setting is an
attribute of the decorators too, the attribute comes first. ``docs/settings.md`` is made of the table in here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..guard.settings import DEFAULTS
from .kinds import DAY_S, PathSetting, Setting, Switch

DEBUG = Switch(
    "debug",
    "Each node's guard writes what it does into a debug log, which is kept where the step fails "
    "([debugging](debugging.md)). It counts on a node from its start, so each node's task needs it.",
)

CARD = Switch(
    "card",
    "Every step of a gang has a [card](card.md), unless the step's attribute `card` says otherwise.",
    default=True,
)

DRY_RUN = Switch(
    "dry_run",
    "What a step's body would have started is shown in the log, node by node, and nothing is started "
    "([dry runs](dry-runs.md)). Each node's task needs it.",
)

PREFLIGHT = Switch(
    "preflight",
    "Before a step's body begins, its nodes compare their software and look at their machines "
    "([preflight](preflight.md)), unless the step's attribute `preflight` says otherwise. Each node's task needs it.",
    default=True,
)

SWITCHES = (CARD, DEBUG, DRY_RUN, PREFLIGHT)

METRICS_FILE = PathSetting(
    "metrics_file",
    "Each node's guard writes the node's metrics into this file while the step runs, as text for node_exporter's "
    "textfile collector ([observability](observability.md)). It counts on a node from its start, so each node's task "
    "needs it.",
    ("node", "task", "step", "run", "flow"),
)


def _guard(name: str, above: float, most: float, purpose: str, origin: str, **more: Any) -> Setting:
    """A setting that the guard has."""
    return Setting(name, purpose, origin, DEFAULTS[name], above, most, **more)


TABLE = (
    Setting(
        "all_nodes_started_timeout",
        "All nodes must have joined within this time.",
        "A cluster that adds machines before it starts the nodes needs minutes.",
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
        "Twice the time of a lost host, since a node that is paused may go on.",
        attribute=True,
    ),
    _guard(
        "stall_timeout",
        3.0,
        7 * DAY_S,
        "No rank of any node makes progress for this long: the gang ends, and shows where all ranks stand "
        "([stalls](stalls.md)).",
        "It is off: how long a healthy step may be silent, only its author knows.",
        attribute=True,
        may_be_off=True,
    ),
    _guard(
        "body_grace",
        0.0,
        3600.0,
        "An interrupted body may take this long, after the time that its ranks have to end, for its `finally` blocks. "
        "Then its stack is printed, and the task is killed.",
        "Enough for closing files and connections.",
    ),
    _guard(
        "kill_grace",
        0.0,
        3600.0,
        "The time between SIGTERM and SIGKILL for ranks, commands and processes that a body has left running; "
        "torchrun's agent has at least 1 s.",
        "Python acts on SIGTERM within milliseconds, but not in a collective that hangs, where "
        "waiting longer gains nothing.",
    ),
    _guard(
        "unkillable_timeout",
        0.0,
        DAY_S,
        "A process that still exists this long after SIGKILL is reported, and not waited for any more.",
        "A process that waits in the kernel for a disk or a driver may still end in that time; "
        "one of another user does not.",
    ),
    _guard(
        "stopped_timeout",
        1.0,
        DAY_S,
        "A process that is stopped (SIGSTOP) for this long ends the gang.",
        "Tools that print a process's stack stop it for a moment. A stop by a debugger does not count.",
    ),
    _guard(
        "report_wait",
        0.1,
        2.5,
        "After the first failure, node 0 waits this long for what other nodes know of it.",
        "Nodes know of a death within milliseconds. They wait 3 s for node 0's report, so that this must be shorter.",
    ),
    _guard(
        "drain_timeout",
        0.5,
        DAY_S,
        "When a process has ended, its last output is passed on to a slow reader for this long.",
        "Metaflow's runtime reads some 10,000 lines in a second.",
    ),
    _guard(
        "handshake_timeout",
        0.5,
        600.0,
        "A connection must have proved the gang's secret within this time.",
        "It takes milliseconds, and longer where a machine is overloaded.",
    ),
    _guard(
        "log_store_timeout",
        1.0,
        DAY_S,
        "In a local run whose node 0 is dead, its guard stores the logs of the other nodes, which may take this long.",
        "Importing Metaflow is the larger part of it; a slow datastore needs more.",
    ),
    _guard(
        "transfer_stall_timeout",
        1.0,
        DAY_S,
        "A large value on its way to node 0, and the start of a command on another node, fail where the other side "
        "sends and takes nothing for this long.",
        "A node may be paused for this long too. A connection also waits for its turn (`transfer_connections`).",
    ),
    _guard(
        "broadcast_stall_timeout",
        1.0,
        DAY_S,
        "A node that takes nothing of a broadcast for this long is passed over; node 0 tries it once more at the end.",
        "Half of the time of a frozen node: all others have the file before such a node ends the gang.",
    ),
    _guard(
        "progress_seconds",
        0.0,
        DAY_S,
        "Ranks that log nothing by `gang_log` count as having made progress after this long ([restarts](restarts.md)).",
        "An exception that comes sooner is most likely one of the script's own, which another try would raise again.",
    ),
    _guard(
        "gpu_memory_timeout",
        0.0,
        3600.0,
        "Before ranks are started again, the GPU memory of those that have ended is waited for this long "
        "([restarts](restarts.md)).",
        "A driver gives it back within a second, but for a fault of its own.",
    ),
    _guard(
        "transfer_connections",
        0.0,
        10_000,
        "A node serves this many connections at once for large values, for files, and for commands of other nodes; "
        "others wait.",
        "Each takes a thread of the guard.",
        unit="connections",
        whole=True,
    ),
    Setting(
        "log_megabytes",
        "This much of each stream of another local node is stored as its task's log; of a longer one the middle is "
        "left out.",
        "Metaflow's client reads a log into memory as a whole.",
        64.0,
        0.0,
        float(1 << 20),
        unit="megabytes",
    ),
    Setting(
        "trace_megabytes",
        "A node stores [traces of torch's profiler](card.md#traces-of-torchs-profiler) up to this size in all, the "
        "newest first. Each node's task needs it.",
        "A trace of some steps on a GPU has tens of megabytes, and a failed step has `end_timeout` to store them.",
        256.0,
        0.0,
        float(1 << 20),
        unit="megabytes",
    ),
)

BY_NAME = {setting.name: setting for setting in TABLE}

ALL: tuple[Setting | Switch | PathSetting, ...] = (*TABLE, *SWITCHES, METRICS_FILE)


def check_all() -> None:
    """Read every setting, also those that only the end of a step, or only some steps, need.

    Raises
    ------
    BadAttribute
        One has a value that is not valid.
    """
    for setting in ALL:
        setting.read()


def guard_settings(attributes: Mapping[str, Any]) -> dict[str, float]:
    """All that the guard has, as its request ``setup`` takes them: ``attributes`` of these names come first.

    Raises
    ------
    BadAttribute
    """
    own = {name: attributes[name] for name in DEFAULTS if attributes.get(name) is not None}
    return {name: float(own[name]) if name in own else BY_NAME[name].read() for name in DEFAULTS}

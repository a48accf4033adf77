"""The matrix: what happens, to whom, when, under which launchers. Plain data; :mod:`oracle` knows what has to follow.

The rows that a fault injector had found red stand first, with the number of their item in the audit.
"""

from __future__ import annotations

from typing import Any

from cells import Cell, Impossible, Row

ALL = ("gang", "torchrun", "agent", "deepspeed", "mpi", "ray", "tensorflow", "jax")
RANKED = ("torchrun", "agent", "deepspeed", "mpi")
STARTED = ("agent", "deepspeed", "mpi")
BODIES = ("tensorflow", "jax")

KEPT = {"FAULTS_HOLDER": "task 1"}
"""Node 1 stays at the moment while another one is struck."""


def rows(whats: str, whos: str, whens: str, launchers: tuple[str, ...] = ("gang",), **more: Any) -> tuple[Row, ...]:
    """All combinations of words that stand between commas."""
    return tuple(
        Row(what.strip(), who.strip(), when.strip(), launchers, **more)
        for when in whens.split(",")
        for who in whos.split(",")
        for what in whats.split(",")
    )


ONCE_RED: tuple[Row, ...] = (
    *rows("nothing", "all", "empty body", item=1, blames="nobody"),
    *rows("raise beside chatty ranks", "rank 3", "ranks", RANKED, item=7),
    *rows("raise, sys.exit(0)", "task 1", "importing, before join", item=9),
    *rows("sys.exit(1), sys.exit(text), os._exit(0), os._exit(3)", "rank 3", "ranks", RANKED, item=10),
    *rows("slow end hook", "task 2", "body", item=12, blames="node 1"),
    *rows("SIGSTOP", "guard 1", "body", item=14),
    *rows("freeze", "host 1, host 0", "body", item=14, place="hosts"),
    *rows("blocked SIGCHLD, blocked SIGTERM, blocked SIGUSR1", "all", "ranks", item=15, blames="nobody"),
    *rows("SIGTERM", "task 0, task 1", "ranks", BODIES, item=21),
    *rows("return early", "task 0", "collective", item=22),
    *rows("os._exit(3)", "task 1", "collective", item=23),
    *rows("C exit(4), closes its descriptors, exec of another program", "task 1", "collective", item=23),
    *rows("SIGKILL", "run", "importing", item=24, blames="none"),
    *rows("thread left", "task 1", "collective", item=25),
    *rows("thread kept", "task 0", "collective", item=25, blames="node 1", told="ValueError"),
    *rows("SIGSTOP", "task 0", "storing", item=25),
    *rows("SIGSTOP", "rank 3", "ranks", STARTED, item=25),
    *rows("message of many lines", "task 1", "collective", item=28),
    *rows("disk full", "all", "start", item=28, blames="none", told="disk"),
)

TASKS: tuple[Row, ...] = (
    *rows("SIGKILL, SIGTERM, SIGSTOP", "task 1", "importing"),
    *rows("SIGKILL", "task 0", "importing, before join, end hook, end", blames="none"),
    *rows("os._exit(3)", "task 1", "importing, before join, end hook"),
    *rows("SIGKILL, SIGTERM, SIGSTOP", "task 1", "before join"),
    *rows("SIGKILL, SIGTERM, SIGSTOP", "task 0, task 1", "forming"),
    *rows("SIGKILL", "task 0, task 1", "body"),
    *rows("SIGTERM, SIGSTOP, SIGSEGV, SIGABRT, SIGBUS", "task 1", "body"),
    *rows("SIGTERM, SIGSTOP, SIGSEGV, SIGABRT", "task 0", "body"),
    *rows("SIGKILL, SIGTERM, SIGSTOP", "task 0, task 1", "collective"),
    *rows("SIGKILL, SIGTERM, SIGSTOP", "task 0, task 1", "ranks"),
    *rows("raise, sys.exit(1), sys.exit(text), recursion", "task 0, task 1", "collective"),
    *rows("sys.exit(0)", "task 0, task 1", "collective"),
    *rows("return early", "task 1", "collective"),
    *rows("os._exit(0)", "task 0, task 1", "collective"),
    *rows("os._exit(3), C exit(4), closes its descriptors, exec of another program", "task 0", "collective"),
    *rows("os.abort, segfault", "task 0, task 1", "body"),
    *rows("memory exhausted", "task 0, task 1", "body"),
    *rows("processor time exhausted", "task 1", "body"),
    *rows("message of 9 MB, message that is no UTF-8", "task 1", "collective"),
    *rows("value that cannot be sent", "task 0, task 1", "collective"),
    *rows("another collective", "task 1", "collective", told="every node must make the same"),
    *rows("SIGKILL, SIGTERM, SIGSTOP, os._exit(3), raise", "task 1", "storing"),
    *rows("SIGKILL, raise, os._exit(3)", "task 0", "storing", blames="none"),
    *rows("SIGKILL, raise", "task 1", "end hook"),
    *rows("raise", "task 0", "end hook", blames="none"),
    *rows("SIGKILL, os._exit(3)", "task 1", "end"),
    *rows("SIGKILL beside a body that holds the GIL", "task 1", "body", env={"FAULTS_HOLD": "gil"}),
    *rows("SIGKILL beside a body that catches all", "task 1", "body", env={"FAULTS_HOLD": "deaf"}),
)

OTHERS: tuple[Row, ...] = (
    *rows("SIGKILL", "guard 0, guard 1", "forming, body, collective, ranks"),
    *rows("SIGSEGV", "guard 0, guard 1", "body"),
    *rows("SIGKILL", "guard 0", "storing", env=KEPT),
    # What node 1 stores never ends, so all of end_timeout passes; here and where the run is killed.
    *rows("SIGKILL", "guard 1", "storing", env={**KEPT, "FAULTS_END_S": "3"}),
    *rows("SIGTERM", "guard 0, guard 1", "ranks", blames="nobody"),
    *rows("SIGSTOP", "guard 0", "body"),
    *rows("SIGKILL", "run", "forming, body, collective, ranks"),
    *rows("SIGKILL", "run", "storing", env={**KEPT, "FAULTS_END_S": "3"}),
    *rows("SIGINT, SIGINT to all", "run", "forming, body, collective, ranks"),
    *rows("SIGKILL, SIGTERM, SIGSEGV, SIGABRT, SIGSTOP", "rank 1", "ranks"),
    *rows("os._exit(3), sys.exit(1), sys.exit(text), raise, os.abort, segfault", "rank 1", "ranks"),
    *rows("SIGKILL, raise", "rank 0", "ranks"),
    *rows("SIGKILL", "child of rank 1", "ranks", blames="nobody"),
)

LAUNCHED: tuple[Row, ...] = (
    *rows("SIGKILL, SIGSEGV", "rank 3", "ranks", RANKED),
    *rows("os.abort, raise", "rank 3", "ranks", RANKED),
    *rows("SIGKILL", "rank 2", "ranks compute", RANKED),
    *rows("SIGSTOP", "rank 3", "ranks", ("torchrun",)),
    *rows("SIGKILL, SIGTERM", "task 0, task 1", "ranks", RANKED),
    *rows("SIGKILL", "guard 1, guard 0, run", "ranks", RANKED),
    *rows("SIGKILL", "launcher 0", "ranks", STARTED),
    *rows("SIGSTOP", "launcher 0", "ranks", STARTED),
    *rows("SIGINT", "run", "ranks", RANKED),
    *rows("SIGKILL, SIGSTOP", "task 0, task 1", "ranks", BODIES),
    *rows("raise, os._exit(3), sys.exit(text)", "task 1", "ranks", BODIES),
    *rows("SIGKILL", "guard 0, guard 1, run", "ranks", BODIES),
    *rows("SIGINT", "run", "ranks", BODIES),
    *rows("SIGKILL, SIGTERM", "task 0, task 1", "ranks", ("ray",)),
    *rows("SIGKILL", "guard 0, guard 1, run", "ranks", ("ray",)),
    *rows("SIGKILL", "raylet 0, raylet 1, gcs_server 0", "ranks", ("ray",), told="SIGKILL"),
    *rows("SIGKILL", "rank 1", "ranks", ("ray",), blames="node 0", told="Crashed|died"),
    *rows("raise", "rank 1", "ranks", ("ray",), blames="node 0", told="ValueError: deliberate"),
    *rows("SIGINT", "run", "ranks", ("ray",)),
)

HOSTS: tuple[Row, ...] = (
    *rows("SIGKILL", "task 0, task 1", "body, collective", place="hosts"),
    *rows("SIGTERM, os._exit(3), raise", "task 1", "collective", place="hosts"),
    *rows("SIGKILL", "guard 0, guard 1", "body", place="hosts"),
    *rows("loss of power", "host 0, host 1", "body", place="hosts"),
    *rows("cut", "link 0, link 1", "body, collective", place="hosts"),
    *rows("loss of power, cut", "host 1", "ranks", ("torchrun", "mpi", "jax"), place="hosts"),
)

AGAIN: tuple[Row, ...] = (
    *rows("SIGKILL, SIGSEGV", "rank 3", "ranks", RANKED, restarts=True),
    *rows("os.abort, raise, os._exit(3), sys.exit(text)", "rank 3", "ranks", RANKED, restarts=True),
    *rows("SIGSTOP", "rank 3", "ranks", RANKED, restarts=True),
    *rows("SIGKILL", "rank 0", "ranks compute", RANKED, restarts=True),
    *rows("SIGKILL", "launcher 0", "ranks", STARTED, restarts=True),
)

ALIKE: dict[str, str] = {
    **dict.fromkeys(("SIGSEGV", "SIGABRT", "SIGBUS", "os.abort", "segfault"), "crash"),
    **dict.fromkeys(("raise", "recursion", "memory exhausted", "message of 9 MB", "message that is no UTF-8"), "raise"),
    **dict.fromkeys(
        ("sys.exit(0)", "sys.exit(1)", "sys.exit(text)", "os._exit(0)", "os._exit(3)", "C exit(4)"), "exit"
    ),
}
"""Faults of one family, of which `make test` takes one a day."""

SLOW = ("SIGSTOP | guard", "SIGSTOP | task 0 | storing")
"""How the names of those begin that `make test` leaves to `make test-all`: they wait for some silence."""

ROWS: tuple[Row, ...] = (*ONCE_RED, *TASKS, *OTHERS, *LAUNCHED, *HOSTS, *AGAIN)


def impossible(what: str, who: str, when: str, launchers: tuple[str, ...], reason: str) -> tuple[Impossible, ...]:
    return tuple(Impossible(Cell(Row(what, who, when, (each,)), each), reason) for each in launchers)


IMPOSSIBLE: tuple[Impossible, ...] = (
    *impossible("SIGKILL", "launcher 0", "ranks", ("torchrun",), "its guard starts the ranks; there is no launcher"),
    *impossible("SIGKILL", "launcher 0", "ranks", ("gang",), "the guard starts the commands; there is no launcher"),
    *impossible("SIGKILL", "launcher 0", "ranks", BODIES, "what works together are the nodes' own tasks"),
    *impossible("SIGKILL", "rank 1", "ranks", BODIES, "a node's rank is its task, of which there are rows"),
    *impossible("SIGKILL", "guard 0", "importing", ("gang",), "a task starts its guard once it has imported Metaflow"),
    *impossible("SIGKILL", "guard 1", "importing", ("gang",), "a task starts its guard once it has imported Metaflow"),
    *impossible("SIGKILL", "rank 1", "forming", ("gang",), "no command runs before the gang has formed"),
    *impossible("raise", "task 1", "ranks", ("mpi", "ray"), "the step's body runs on node 0 only"),
    *impossible("SIGKILL", "raylet 0", "ranks", ("gang",), "only @metaflow_ray has daemons of Ray's"),
)

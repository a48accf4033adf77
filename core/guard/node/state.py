"""The life cycle of a node: one value, and in one place what changes it.

state               meaning                                                                          stops  body over
FORMING             the nodes join; the body has not begun                                           no     no
RUNNING             all nodes have joined, and the body runs                                         no     no
BODY_OVER           the body has ended well and Metaflow stores, or nothing can interrupt the body   no     yes
LEFT                Metaflow has stored the task as succeeded                                        no     yes
STOPPING            the gang ends, and the body has been interrupted                                 yes    no
STOPPING_BODY_OVER  the gang ends, and there is no body to interrupt                                 yes    yes
STOPPING_LEFT       the gang ends, after Metaflow has stored the task as succeeded                   yes    yes
UNWOUND             the gang ends, and the task has reported that its body has ended                 yes    yes
FAILURE_STORED      the same, and Metaflow has stored the task as failed                             yes    yes
KILLED              the guard has killed the task, which did not end by itself                       yes    yes
FINISHED            the guard tidies up and ends; what was true before stays true

event             from                                              to
all_joined        FORMING                                           RUNNING
body_done         FORMING, RUNNING                                  BODY_OVER
                  STOPPING                                          STOPPING_BODY_OVER
body_unreachable  FORMING, RUNNING                                  BODY_OVER
                  STOPPING                                          STOPPING_BODY_OVER
left              FORMING, RUNNING, BODY_OVER                       LEFT
                  STOPPING, STOPPING_BODY_OVER, UNWOUND, KILLED     STOPPING_LEFT
stop              FORMING, RUNNING                                  STOPPING
                  BODY_OVER                                         STOPPING_BODY_OVER
                  LEFT                                              STOPPING_LEFT
unwound           STOPPING, STOPPING_BODY_OVER                      UNWOUND
failure_stored    STOPPING, STOPPING_BODY_OVER, UNWOUND, KILLED     FAILURE_STORED
killed            STOPPING, STOPPING_BODY_OVER, UNWOUND             KILLED
finished          all others                                        FINISHED

Any other event leaves the state as it is. The messages of a task and of the hub cross each other, so such an event is
late and not a mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..debug_log import DebugLog

FORMING = "forming"
RUNNING = "running"
BODY_OVER = "body over"
LEFT = "left"
STOPPING = "stopping"
STOPPING_BODY_OVER = "stopping, body over"
STOPPING_LEFT = "stopping, left"
UNWOUND = "unwound"
FAILURE_STORED = "failure stored"
KILLED = "killed"
FINISHED = "finished"

STATES = (
    FORMING,
    RUNNING,
    BODY_OVER,
    LEFT,
    STOPPING,
    STOPPING_BODY_OVER,
    STOPPING_LEFT,
    UNWOUND,
    FAILURE_STORED,
    KILLED,
    FINISHED,
)

_NO_BODY = {FORMING: BODY_OVER, RUNNING: BODY_OVER, STOPPING: STOPPING_BODY_OVER}

TRANSITIONS: dict[str, dict[str, str]] = {
    "all_joined": {FORMING: RUNNING},
    "body_done": _NO_BODY,
    "body_unreachable": _NO_BODY,
    "left": {
        FORMING: LEFT,
        RUNNING: LEFT,
        BODY_OVER: LEFT,
        STOPPING: STOPPING_LEFT,
        STOPPING_BODY_OVER: STOPPING_LEFT,
        UNWOUND: STOPPING_LEFT,
        KILLED: STOPPING_LEFT,
    },
    "stop": {
        FORMING: STOPPING,
        RUNNING: STOPPING,
        BODY_OVER: STOPPING_BODY_OVER,
        LEFT: STOPPING_LEFT,
    },
    "unwound": {STOPPING: UNWOUND, STOPPING_BODY_OVER: UNWOUND},
    "failure_stored": {
        STOPPING: FAILURE_STORED,
        STOPPING_BODY_OVER: FAILURE_STORED,
        UNWOUND: FAILURE_STORED,
        KILLED: FAILURE_STORED,
    },
    "killed": {STOPPING: KILLED, STOPPING_BODY_OVER: KILLED, UNWOUND: KILLED},
    "finished": {state: FINISHED for state in STATES if state != FINISHED},
}
"""By event: from which state to which."""

_STOPS = frozenset({STOPPING, STOPPING_BODY_OVER, STOPPING_LEFT, UNWOUND, FAILURE_STORED, KILLED})

_RUNS_BODY = frozenset({FORMING, RUNNING, STOPPING})

_LEFT = frozenset({LEFT, STOPPING_LEFT})

_END_IS_EXPECTED = _LEFT | {UNWOUND, FAILURE_STORED, KILLED}


class NodeState:
    """The state of a node, and two facts that are independent of it.

    Attributes
    ----------
    value : str
        One of :data:`STATES`.
    task_alive : bool
        Whether the process of the task lives; it may die in every state.
    has_succeeded : bool
        Whether the body has ended well, whatever came after it.
    on_event : callable
        Gets the name of each event that has changed the state.
    """

    def __init__(self) -> None:
        self.value = FORMING
        self.task_alive = True
        self.has_succeeded = False
        self._last = FORMING  # before FINISHED
        self.on_event: Callable[[str], None] = lambda event: None
        self.debug: DebugLog | None = None

    def _on(self, event: str) -> bool:
        """Whether the ``event`` changes the state; it has changed then."""
        following = TRANSITIONS[event].get(self.value)
        if following is None:
            return False
        if self.debug is not None:
            self.debug.write(f"state: {self.value} -> {following} ({event})")
        self.value = following
        if following != FINISHED:
            self._last = following
        self.on_event(event)
        return True

    # -- what is asked of a state ------------------------------------------------------------------------------------

    @property
    def is_stopping(self) -> bool:
        """Whether the gang ends."""
        return self._last in _STOPS

    @property
    def is_body_over(self) -> bool:
        """Whether nothing of the body is left to interrupt."""
        return self._last not in _RUNS_BODY

    @property
    def has_left(self) -> bool:
        """Whether Metaflow has stored the task as succeeded."""
        return self._last in _LEFT

    @property
    def is_end_expected(self) -> bool:
        """Whether the task has reported all that it had to, or is killed by its guard: its end is no failure."""
        return self._last in _END_IS_EXPECTED

    @property
    def is_failure_stored(self) -> bool:
        """Whether Metaflow has stored the task as failed."""
        return self._last == FAILURE_STORED

    @property
    def is_finished(self) -> bool:
        return self.value == FINISHED

    def refusal(self) -> str:
        """Why the node starts nothing any more, as a clause; empty as long as it does."""
        if self.is_stopping:
            return "its gang is being stopped"
        return "its task has ended" if self.has_left else ""

    # -- events ------------------------------------------------------------------------------------------------------

    def all_joined(self) -> bool:
        """All nodes have joined."""
        return self._on("all_joined")

    def body_done(self) -> bool:
        """The body has ended well. What is left is Metaflow's, which is not interrupted."""
        self.has_succeeded = True
        return self._on("body_done")

    def body_unreachable(self) -> bool:
        """There is no way to interrupt the body any more."""
        return self._on("body_unreachable")

    def left(self) -> bool:
        """Metaflow has stored the task as succeeded."""
        return self._on("left")

    def stop(self) -> bool:
        """The gang ends."""
        return self._on("stop")

    def unwound(self) -> bool:
        """The body has failed, or has ended as an interrupted one, and the task has reported that."""
        return self._on("unwound")

    def failure_stored(self) -> bool:
        """Metaflow has stored the task as failed."""
        return self._on("failure_stored")

    def killed(self) -> bool:
        """The guard kills the task."""
        return self._on("killed")

    def finished(self) -> bool:
        """The guard has nothing left to wait for."""
        return self._on("finished")

"""The life cycle of a node: every event in every state, and what each state says."""

from __future__ import annotations

import metaflow  # noqa: F401 - before any import of the extension
import pytest

from metaflow_extensions.gang.core.guard.node import state
from metaflow_extensions.gang.core.guard.node.state import STATES, TRANSITIONS, NodeState

EVENTS = sorted(TRANSITIONS)


def reached(value: str) -> NodeState:
    """A node in state ``value``, by the fewest events."""
    paths: dict[str, list[str]] = {state.FORMING: []}
    front = [state.FORMING]
    while front:
        at = front.pop(0)
        for event in EVENTS:
            following = TRANSITIONS[event].get(at)
            if following is not None and following not in paths:
                paths[following] = [*paths[at], event]
                front.append(following)
    node = NodeState()
    for event in paths[value]:
        assert getattr(node, event)()
    assert node.value == value
    return node


def traits(node: NodeState) -> tuple[bool, ...]:
    return (
        node.is_stopping,
        node.is_body_over,
        node.has_left,
        node.is_end_expected,
        node.is_failure_stored,
        node.is_finished,
    )


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("value", STATES)
def test_every_event_in_every_state(value: str, event: str) -> None:
    node = reached(value)
    before = traits(node)
    following = TRANSITIONS[event].get(value)
    assert getattr(node, event)() == (following is not None)
    assert node.value == (following or value)
    if following is None:
        assert traits(node) == before, "an event that comes too late changes nothing"
    if before[0]:
        assert node.is_stopping, "a gang that ends goes on ending"
    if before[1]:
        assert node.is_body_over, "a body does not begin again"
    if before[-1]:
        assert node.is_finished, "a guard that tidies up does nothing else"


@pytest.mark.parametrize("value", STATES)
def test_what_was_true_stays_true_at_the_end(value: str) -> None:
    node = reached(value)
    before = traits(node)[:-1]
    node.finished()
    assert traits(node) == (*before, True)


def test_the_table_in_the_docstring_is_that_of_the_code() -> None:
    text = state.__doc__ or ""
    table, moves = text.split("event  ")
    shown = {}
    for line in table.splitlines():
        words = line.split()
        if words and hasattr(state, words[0]) and words[0].isupper() and words[0] != "FINISHED":
            shown[getattr(state, words[0])] = (words[-2] == "yes", words[-1] == "yes")
    assert shown == {value: traits(reached(value))[:2] for value in STATES if value != state.FINISHED}
    found: dict[str, dict[str, str]] = {}
    event = ""
    for line in moves.splitlines()[1:]:
        if not line.strip():
            break
        event = line[:18].strip() or event
        if event == "finished":
            continue
        sources, target = line[18:68].split(","), line[68:].strip()
        for source in sources:
            found.setdefault(event, {})[getattr(state, source.strip())] = getattr(state, target)
    found["finished"] = TRANSITIONS["finished"]
    assert found == TRANSITIONS


def test_a_body_that_ended_well_has_succeeded_whatever_comes_after_it() -> None:
    node = NodeState()
    node.all_joined()
    node.body_done()
    node.stop()
    node.unwound()
    assert node.value == state.UNWOUND and node.has_succeeded

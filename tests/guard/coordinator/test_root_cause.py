"""Which of many failures is the cause, and how it is told."""

from __future__ import annotations

import json
import re
import signal
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaflow_extensions.gang.core.guard.coordinator.root_cause import (
    TIE_S,
    causes,
    failure_report,
    merge,
    ranks_that_left,
)
from metaflow_extensions.gang.core.guard.failure_record import EVIDENCE, LOST, PEER, Failure
from metaflow_extensions.gang.core.guard.text import how_it_ended, indent, said_by, signal_name
from metaflow_extensions.gang.core.guard.tracebacks import DETAIL_LIMIT, DETAIL_LINES, last_traceback

NOW = 1_700_000_000.0


def failure(node: int, after: float = 0.0, **changes: Any) -> Failure:
    """A rank's non-zero exit on ``node``, ``after`` seconds."""
    values: dict[str, Any] = {"kind": "exit", "text": f"rank {node} exited with code 1", "time": NOW + after, **changes}
    return Failure(node, **values)


def blamed(*failures: Failure) -> list[int]:
    return [record.node for record in causes(failures)]


def test_evidence_comes_before_a_lost_connection_before_an_error_about_a_peer() -> None:
    peer, lost, evidence = failure(1, 0, order=PEER), failure(2, 1, order=LOST), failure(3, 2, order=EVIDENCE)
    assert blamed(peer, lost, evidence) == [3]
    assert blamed(peer, lost) == [2]
    assert blamed(peer) == [1]
    assert blamed() == []


def test_within_a_class_the_earlier_one_counts_whatever_came_first_in() -> None:
    assert blamed(failure(1, 0.5), failure(2, 0.1), failure(3, 0.9)) == [2]


def test_a_tie_names_both_and_two_of_one_node_are_no_tie() -> None:
    assert blamed(failure(1, TIE_S / 2), failure(2)) == [2, 1]
    assert blamed(failure(1, TIE_S * 2), failure(2)) == [2]
    # One clock tells the ranks of one node apart: the first of them was first.
    assert [record.rank for record in causes([failure(1, TIE_S / 2, rank=5), failure(1, 0, rank=4)])] == [4]


def test_ranks_that_were_told_to_end_with_their_node_are_no_cause() -> None:
    told = failure(1, 0.5, kind="preempted", text="was told to end (SIGTERM)")
    ended = failure(0, 0.0, kind="signal", exit_code=-signal.SIGTERM)
    killed = failure(2, 0.2, kind="signal", exit_code=-signal.SIGKILL)
    assert blamed(ended, told) == [1]
    assert blamed(ended, told, killed) == [2]
    assert blamed(ended) == [0]
    assert blamed(ended, told.replaced(time=told.time + 10)) == [0]


def test_a_rank_that_handles_sigterm_is_no_cause_where_its_own_node_was_told_to_end() -> None:
    told = failure(1, 0.3, kind="preempted", text="was told to end (SIGTERM)")
    exited = failure(1, 0.0, text="rank 1 called sys.exit(3)", rank=1, exit_code=3)
    raised = failure(1, 0.1, kind="exception", text="rank 1 raised RuntimeError", rank=1)
    assert causes([exited, raised, told]) == [told]
    # What another node's rank does, what it did long before, and what the body itself raises, are causes.
    assert blamed(exited.replaced(node=2), told) == [2]
    assert causes([exited.replaced(time=NOW - 1.0), told])[0].rank == 1
    body = raised.replaced(rank=None, text="the step's body raised ValueError")
    assert causes([body, told]) == [body]


def test_clocks_count_with_what_they_may_be_off_by() -> None:
    # Node 2's clock is 100 s behind: its record looks early, and is the later one.
    behind = failure(2, -99.0).corrected(100.0, 0.01)
    assert behind.time == pytest.approx(NOW + 1.0)
    assert blamed(failure(1), behind) == [1]
    # Within the uncertainty of the two nobody knows; what was corrected twice is off by both.
    near = failure(2, 0.015).corrected(0.0, 0.01).corrected(0.0, 0.01)
    assert near.uncertainty == pytest.approx(0.02)
    assert blamed(failure(1), near) == [1, 2]
    assert blamed(failure(1), near.replaced(time=NOW + 0.03)) == [1]


def test_a_dead_task_s_two_records_become_one_that_knows_the_signal_and_the_earlier_time() -> None:
    gone = failure(1, 0.0, kind="task", text="the node's task died in the middle of its work")
    how = failure(1, 0.2, kind="task-signal", text="the node's task was killed by SIGKILL")
    for pair in ([gone, how], [how, gone]):
        (record,) = merge(pair)
        assert (record.kind, record.text) == ("task-signal", how.text)
        assert record.time == gone.time
    # So another failure in between is not taken for the first.
    assert blamed(how, failure(2, 0.1), gone) == [1]


def test_the_exit_of_a_task_that_has_told_why_adds_nothing_but_a_signal_does() -> None:
    told = failure(1, 0.0, kind="exception", text="the step's body raised ValueError")
    ended = failure(1, 0.3, kind="task-exit", text="the node's task exited with code 1")
    assert merge([told, ended]) == [told]
    killed = failure(1, 0.3, kind="task-signal", text="the node's task was killed by SIGKILL")
    assert {record.kind for record in merge([told, killed])} == {"exception", "task-signal"}
    # An error about a peer tells nothing about the node's own task.
    peer = failure(1, 0.0, order=PEER)
    assert {record.kind for record in merge([peer, ended])} == {"exit", "task-exit"}
    # Another node's words say nothing about this one's.
    assert len(merge([told, failure(2, 0.3, kind="task-exit")])) == 2


records = st.builds(
    failure,
    node=st.integers(0, 4),
    after=st.floats(0, 1),
    order=st.sampled_from([EVIDENCE, LOST, PEER]),
    kind=st.sampled_from(["exit", "signal", "exception", "task", "task-signal", "lost"]),
    rank=st.none() | st.integers(0, 3),
    uncertainty=st.floats(0, 0.05),
)


def one_task_per_node(record: Failure) -> object:
    return (record.node, record.kind) if record.kind.startswith("task") else id(record)


@settings(database=None, deadline=None, derandomize=True, max_examples=500)
@given(st.lists(records, min_size=1, unique_by=(lambda record: record.time, one_task_per_node)), st.randoms())
def test_the_verdict_does_not_depend_on_the_order_of_arrival(found: list[Failure], random: Any) -> None:
    told = causes(found)
    assert told, "somebody is always named"
    merged = merge(found)
    assert {record.order for record in told} == {min(record.order for record in merged)}
    shuffled = list(found)
    random.shuffle(shuffled)
    assert [record.to_json() for record in causes(shuffled)] == [record.to_json() for record in told]


def test_a_record_travels_whole_and_its_detail_is_cut_in_the_middle() -> None:
    detail = "".join(f"{number}\n" for number in range(10_000))
    record = failure(3, detail=detail, rank=7, order=LOST, uncertainty=0.25)
    assert record.detail.startswith("0\n1\n2\n") and record.detail.endswith("\n9998\n9999\n")
    assert len(record.detail) <= DETAIL_LIMIT and len(record.detail.splitlines()) <= DETAIL_LINES
    assert re.search(r"\n\[gang\] \.\.\. 4\d{4} characters are left out here \.\.\.\n", record.detail)
    there = Failure.from_json(json.loads(json.dumps(record.to_json())))
    assert there.to_json() == record.to_json()
    # What a newer version adds is passed over.
    assert Failure.from_json({**record.to_json(), "colour": "red"}).node == 3


def test_the_failure_report_names_node_host_and_last_words() -> None:
    assert failure_report([], {}) == "The gang ended without a known cause."
    record = failure(2, text="rank 5 was killed by SIGSEGV", detail="a\nb\n")
    assert failure_report([record, failure(0, 1.0)], {2: "host-b"}) == (
        "The first failure was on node 2 (host-b): rank 5 was killed by SIGSEGV\n  | a\n  | b"
    )
    assert failure_report([failure(2)], {}) == "The first failure was on node 2: rank 2 exited with code 1"
    both = failure_report([failure(2), failure(1)], {1: "host-a"})
    assert both == (
        "These failed within the same moment:\n"
        "- node 2: rank 2 exited with code 1\n- node 1 (host-a): rank 1 exited with code 1"
    )
    assert indent("a\n\nb\n\n") == "  | a\n  | \n  | b"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (0, "exited with code 0"),
        (3, "exited with code 3"),
        (-signal.SIGSEGV, "was killed by SIGSEGV"),
        (-signal.SIGABRT, "was aborted (SIGABRT), as C++ code and os.abort() do when they give up"),
        (-signal.SIGKILL, "was killed by SIGKILL (out of memory?)"),
        (-signal.SIGBUS, "was killed by SIGBUS (/dev/shm full?)"),
        (-63, "was killed by signal 63"),
    ],
)
def test_exit_codes_are_told_in_words(code: int, told: str) -> None:
    assert how_it_ended(code) == told


def test_signals_without_a_name_have_their_number() -> None:
    assert signal_name(signal.SIGTERM) == "SIGTERM"
    assert signal_name(50) == "signal 50"


ONE = """Traceback (most recent call last):
  File "a.py", line 1, in <module>
    f()
ValueError: one"""


def test_the_last_traceback_is_found_with_those_that_led_to_it() -> None:
    assert last_traceback("nothing\n") == ""
    assert last_traceback(f"output\n{ONE}\n") == ONE
    assert last_traceback(f"{ONE.replace('one', 'old')}\nunrelated\n{ONE}\nafterwards\n").startswith(ONE)
    joined = f"{ONE}\n\nDuring handling of the above exception, another exception occurred:\n\n{ONE}"
    assert last_traceback(f"output\n{joined}\n") == joined
    caused = f"{ONE}\n\nThe above exception was the direct cause of the following exception:\n\n{joined}"
    assert last_traceback(f"{ONE}\nunrelated\n{caused}\n\n") == caused
    labelled = "\n".join(f"[rank 3] {line}" for line in ONE.splitlines())
    assert last_traceback(f"x\n{labelled}\n") == labelled


def test_ranks_that_left_are_named_beside_the_one_that_misses_them_and_beside_no_other() -> None:
    complains = failure(0, 10.0, rank=0, order=PEER)
    ended = {1: [(3, NOW + 9.8), (2, NOW + 10.001)], 2: [(5, NOW + 12.0)]}
    assert ranks_that_left([complains], ended) == (
        "Rank 3 on node 1 had ended with code 0, 0.2 s before, rank 2 on node 1 had ended with code 0 at that moment, "
        "while others still needed it."
    )
    left = ranks_that_left([complains], {1: [(3, NOW + 9.8)]})
    assert failure_report([complains], {}, left).splitlines()[-1] == (
        "Rank 3 on node 1 had ended with code 0, 0.2 s before, while others still needed it."
    )
    many = ranks_that_left([complains], {1: [(rank, NOW) for rank in range(100, 120)]})
    assert ", and 12 more ranks, while" in many
    # Evidence needs nobody beside it; and the one that complains has not left.
    assert ranks_that_left([failure(0, rank=0)], ended) == ranks_that_left([], ended) == ""
    assert ranks_that_left([complains], {0: [(0, NOW)]}) == ""


def test_lines_of_another_rank_are_known_by_its_number_also_from_c_plus_plus() -> None:
    text = "[rank1]: a\n[rank2]: b\n[rank2]:[E626 x.cpp:1] c\n[rank1]:[E626 x.cpp:1] d\nplain\n"
    assert said_by(1, text) == "a\n[rank1]:[E626 x.cpp:1] d\nplain\n"

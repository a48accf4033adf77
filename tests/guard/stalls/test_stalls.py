"""Gangs that stall, and gangs that only look so, with real guards and ranks."""

from __future__ import annotations

import re

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from support.guard.stalls import STALLS, TIMEOUT_S, TRAINS_S, run_cases
from support.requirements import require_packages

from metaflow_extensions.gang.core.guard.coordinator.gang_stall import COLLECT_S

STARTS_S = 10.0
"""Seconds in which a rank imports torch, on a busy machine."""


@pytest.mark.slow
def test_a_gang_in_which_every_rank_waits_otherwise_is_told_with_each_place() -> None:
    require_packages("torch")
    outcome = run_cases(*STALLS)
    assert outcome.failure is not None and outcome.failure["kind"] == "stall", outcome.report
    assert f"has made no progress for {TIMEOUT_S:g} s (stall_timeout)" in outcome.report
    for rank, function in enumerate(STALLS.values()):
        ranks = [rank for rank, name in enumerate(STALLS.values()) if name == function]
        who = f"rank {rank}" if len(ranks) == 1 else f"{len(ranks)} ranks ({', '.join(map(str, ranks))})"
        assert f"  | {who} in {function} at stalls.py:" in outcome.report, outcome.report


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank_0", "rank_1", "told"),
    [
        # Rank 0, before it opens the store: the signal by which rank 1 is asked makes torch report a failed attempt.
        ("sleeps_in_python", "does_not_come_to_the_collective", "rank 0 in wait_for_ever .*1 in init_process_group "),
        ("is_stopped", "does_not_come_to_the_collective", r"rank 0 \(process \d+\) has been stopped \(SIGSTOP\)"),
        # Rank 1, before it comes to the store.
        ("waits_in_a_collective", "sleeps_in_python", "rank 0 in init_process_group .*rank 1 in wait_for_ever "),
        ("waits_in_a_collective", "is_stopped", r"rank 1 \(process \d+\) has been stopped \(SIGSTOP\)"),
    ],
)
def test_a_rank_that_hangs_before_it_is_at_the_store_is_told_in_time(rank_0: str, rank_1: str, told: str) -> None:
    require_packages("torch")
    outcome = run_cases(rank_0, rank_1)
    assert re.search(told, outcome.report), outcome.report
    assert outcome.seconds < STARTS_S + TIMEOUT_S + COLLECT_S, outcome.report


@pytest.mark.slow
def test_a_rank_that_works_without_a_word_keeps_its_gang_alive_while_all_others_wait() -> None:
    outcome = run_cases("trains_by_long_calls", "waits_for_another")
    assert outcome.failure is None, outcome.report
    assert outcome.seconds >= TRAINS_S

"""Gangs that stall, and gangs that only look so, with real guards and ranks."""

from __future__ import annotations

import pytest
from support.guard.stalls import STALLS, TIMEOUT_S, TRAINS_S, run_cases
from support.requirements import require_packages


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
def test_a_rank_that_works_without_a_word_keeps_its_gang_alive_while_all_others_wait() -> None:
    outcome = run_cases("trains_by_long_calls", "waits_for_another")
    assert outcome.failure is None, outcome.report
    assert outcome.seconds >= TRAINS_S

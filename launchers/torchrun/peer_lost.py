"""What torchrun's agent prints when a rank has failed, and where it quotes one that is not to blame."""

from __future__ import annotations

from ...core.peer_lost import RANK_PEER_LOST

_ANY = "(?:" + "|".join(RANK_PEER_LOST) + ")"
_ROOT = r"Root Cause \(first observed failure\):"

AGENT_PEER_LOST = (
    # The error file of the rank that the agent blames, or the agent's own last words.
    r"\A(?![\s\S]*" + _ROOT + r")[\s\S]*?" + _ANY,
    # What the agent's summary quotes of it.
    _ROOT + r"[\s\S]*?" + _ANY,
    # Without @record the summary quotes nothing, but the rank has said it: torch puts its number before its lines,
    # without a space where they come from C++.
    r"\[rank(?P<blamed>\d+)\]: ?[^\n]*" + _ANY + r"[\s\S]*" + _ROOT + r"[\s\S]*?\n +rank +: (?P=blamed) \(",
)
"""For the output of torchrun's agent, which holds the output of all its ranks."""

_SIGNALLED = r"rank +: \d+ \([^\n]*\n +exitcode +: -(?!15 )\d"

AGENT_REPORT = (
    # A signal that the agent did not send itself is the cause, whichever rank it names as the first it observed.
    r"\nFailures:\n(?:(?=[\s\S]*?" + _SIGNALLED + r")[\s\S]*?(?=" + _SIGNALLED + r")"
    r"|[\s\S]*?" + _ROOT + r"\n[\s\S]*?(?=rank +: \d))"
    r"rank +: (?P<rank>\d+) \([^\n]*\n +exitcode +: (?P<exit_code>-?\d+)"
)
"""Finds rank and exit code of the rank that failed first in the agent's summary."""

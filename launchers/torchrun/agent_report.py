"""The report that torchrun's agent prints when a rank has failed."""

from __future__ import annotations

AGENT_REPORT = (
    # A rank has printed what it has to print before the agent ends the others.
    r"(?P<mark>Sending process \d{1,9} closing signal )"
    r"|(?P<first>Root Cause \(first observed failure\):\n(?:[^\n]{0,300}\n){1,4}?)?"
    r" {1,8}rank {1,12}: (?P<rank>\d{1,9}) \([^\n]{0,40}\n {1,8}exitcode {1,8}: "
    # A signal that the agent did not send itself is the cause, even if the agent names another rank as the first.
    r"(?P<exit_code>(?(first)|(?!-15 ))-?\d{1,9}) \(pid"
)
"""Finds rank and exit code of each failed rank in the agent's summary."""

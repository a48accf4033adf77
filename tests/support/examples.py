"""What tests of the examples share."""

from __future__ import annotations

import re

import pytest

from .paths import ROOT
from .requirements import require_packages

EXAMPLES = ROOT / "examples"

LIMIT = 240.0
"""Seconds: tells "slow" from "hangs" on a busy machine."""


@pytest.fixture
def training() -> None:
    """What the examples that train need."""
    require_packages("torch", "sklearn")


def printed(output: str, pattern: str) -> str:
    """The first group of the pattern in a task's output, where it must be found once."""
    found = re.findall(pattern, output)
    assert len(found) == 1, f"{pattern!r} found {len(found)} times in:\n{output}"
    return str(found[0])

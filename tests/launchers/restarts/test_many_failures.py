"""A training on hosts goes on after several failures of different kinds; ``kills.py`` makes a hundred."""

from __future__ import annotations

from pathlib import Path

import pytest
from kills import many
from support.requirements import require_packages

LIMIT_S = 1200
"""For six starts of eight ranks that import torch, on a machine of two processors that does more."""


@pytest.mark.big
@pytest.mark.timeout(LIMIT_S)
def test_ranks_and_hosts_fail_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_packages("torch")
    many(tmp_path, kills=5, seed=37, spares=1)
    assert "loses power" in capsys.readouterr().out, "the seed is one with a lost host"

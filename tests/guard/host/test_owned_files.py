"""What a guard owns by a pattern: files that are made at once count, older ones do not."""

from __future__ import annotations

import time
from pathlib import Path

from metaflow_extensions.gang.core.guard.host.owned_files import Owned

FILES = 10
"""Enough for some to be made in the same tick of the kernel's clock as their pattern."""

TICKS_NS = 50_000_000
"""Several ticks of the kernel's clock, which are at most 10 ms each."""


def test_a_file_that_is_made_at_once_goes_and_an_older_one_stays(tmp_path: Path) -> None:
    older = tmp_path / "0-older"
    older.touch()
    while time.time_ns() < older.stat().st_ctime_ns + TICKS_NS:
        pass
    owned = Owned()
    for number in range(FILES):
        owned.add_left_by_tries(str(tmp_path / f"{number}-*"))
        (tmp_path / f"{number}-made-at-once").touch()
    owned.remove_left_behind()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-older"]

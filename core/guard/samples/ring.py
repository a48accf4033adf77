"""A bounded number of samples, of which older ones are thinned out."""

from __future__ import annotations

from typing import Any

MOST = 512
"""Samples of one node: some 100 kB. With 2 s between them all of the last 17 minutes; of a step of a day one in some
minutes.
"""


class Ring:
    """At most ``most`` samples. When it is full, every second one of the older half is dropped."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self.samples: list[dict[str, Any]] = []

    def add(self, sample: dict[str, Any]) -> None:
        """Add the newest sample."""
        if len(self.samples) >= self._most:
            half = self._most // 2
            self.samples[:half] = self.samples[:half:2]
        self.samples.append(sample)

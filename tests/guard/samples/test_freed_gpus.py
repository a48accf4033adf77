"""GPU memory is waited for before ranks are started again; a driver's files stand in for GPUs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import metaflow  # noqa: F401 - before any import of the extension
import pytest

from metaflow_extensions.gang.core.guard.loop.event_loop import Loop
from metaflow_extensions.gang.core.guard.samples.amd import Amd
from metaflow_extensions.gang.core.guard.samples.freed_gpus import FreedGpus
from metaflow_extensions.gang.core.guard.samples.gpus import GpuReader

GIB = 1 << 30

LIMIT_S = 10.0


class Card:
    """A GPU by the files of its driver."""

    def __init__(self, folder: Path) -> None:
        self._used = folder / "card0" / "device" / "mem_info_vram_used"
        self._used.parent.mkdir(parents=True)
        (self._used.parent / "gpu_busy_percent").write_text("0\n")
        (self._used.parent / "mem_info_vram_total").write_text(f"{80 * GIB}\n")

    def uses(self, amount: int) -> None:
        new = self._used.with_suffix(".new")
        new.write_text(f"{amount}\n")
        new.replace(self._used)


@pytest.fixture
def card(tmp_path: Path) -> Card:
    return Card(tmp_path)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def waited(
    loop: Loop, gpus: FreedGpus, most_s: float, meanwhile: Callable[[], None] = lambda: None
) -> tuple[str, float]:
    """What is told in the end, and after how many seconds."""
    told: list[str] = []
    began = time.monotonic()

    def then(text: str) -> None:
        told.append(text)
        loop.stop()

    gpus.wait(most_s, then)
    loop.call_later(0.5, meanwhile)
    loop.call_later(LIMIT_S, loop.stop)
    loop.run()
    return told[0], time.monotonic() - began


def began(loop: Loop, card: Card, tmp_path: Path) -> tuple[FreedGpus, GpuReader]:
    """Once the memory before the ranks has been noted; then they take 70 GiB."""
    card.uses(GIB)
    reader = GpuReader(lambda: Amd(str(tmp_path)))
    gpus = FreedGpus(loop, reader)
    loop.call_later(0.5, loop.stop)
    loop.run()
    card.uses(71 * GIB)
    return gpus, reader


def test_memory_that_comes_back_is_waited_for(loop: Loop, card: Card, tmp_path: Path) -> None:
    gpus, reader = began(loop, card, tmp_path)
    told, seconds = waited(loop, gpus, LIMIT_S, lambda: card.uses(GIB))
    assert told == ""
    assert 0.5 <= seconds < LIMIT_S
    reader.close()


def test_memory_that_does_not_come_back_is_told(loop: Loop, card: Card, tmp_path: Path) -> None:
    gpus, reader = began(loop, card, tmp_path)
    told, _ = waited(loop, gpus, 1.0)
    assert "still in use after 1 s: GPU 0 70.0 GiB" in told
    reader.close()


def test_without_a_gpu_nothing_is_waited_for(loop: Loop) -> None:
    told: list[str] = []
    FreedGpus(loop, None).wait(LIMIT_S, told.append)
    assert told == [""]

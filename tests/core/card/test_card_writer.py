"""The card's writer, a program beside a guard: what it is told is what Metaflow's client reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import metaflow  # noqa: F401 - it loads the package by itself, and must not be asked to half-way
import pytest
from card_sample import snapshot

from metaflow_extensions.gang.core.card.html import FINAL, LIVE
from metaflow_extensions.gang.core.metaflow_compat.cards import card_store

LIMIT_S = 240
PATHSPEC = "Digits/17/train/2"
PROGRAM = (
    "import sys, importlib; importlib.import_module('metaflow_extensions.gang.core.card.writer').main(sys.argv[1])"
)


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[bytes]:
    (tmp_path / ".metaflow").mkdir()
    monkeypatch.chdir(tmp_path)
    spec = {"flow": "Digits", "datastore": "local", "root": "", "pathspec": PATHSPEC, "card": "0123456789"}
    command = [sys.executable, "-c", f"import metaflow; {PROGRAM}", json.dumps(spec)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=tmp_path) as process:
        yield process
        process.kill()


def tell(writer: subprocess.Popen[bytes], **snapshot_: object) -> None:
    assert writer.stdin is not None
    writer.stdin.write(json.dumps(snapshot_).encode() + b"\n")
    writer.stdin.flush()


def stored() -> tuple[str, dict[str, object]]:
    """The page and the data in the datastore."""
    store = card_store("Digits", "local", "", PATHSPEC)
    (card,) = store.extract_card_paths(card_type="gang")
    (data,) = store.extract_data_paths(card_type="gang")
    return store.get_card_html(card), store.get_card_data(data)


def test_the_last_state_is_kept_and_ends_the_writer(writer: subprocess.Popen[bytes]) -> None:
    for number in range(20):
        tell(writer, **snapshot(2, launches=[], attempt=number))
    tell(writer, **snapshot(2, state="succeeded", attempt=21), final=True)
    assert writer.wait(LIMIT_S) == 0
    page, data = stored()
    assert data["reload_token"] == FINAL
    assert data["data"]["attempt"] == 21  # type: ignore[index]
    assert '"attempt":21' in page and LIVE in page


def test_a_guard_that_is_gone_leaves_what_it_has_told(writer: subprocess.Popen[bytes]) -> None:
    tell(writer, **snapshot(2))
    assert writer.stdin is not None
    writer.stdin.close()
    assert writer.wait(LIMIT_S) == 0
    page, data = stored()
    assert data["data"]["state"] == "lost"  # type: ignore[index]
    assert '"state":"lost"' in page


def test_a_writer_that_was_told_nothing_stores_nothing(writer: subprocess.Popen[bytes]) -> None:
    assert writer.stdin is not None
    writer.stdin.close()
    assert writer.wait(LIMIT_S) == 0
    assert not list(Path().rglob("*.html"))

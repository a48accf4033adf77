"""Which traces of torch's profiler a node stores, and what it says of the others; in a real local datastore."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from metaflow.datastore.flow_datastore import FlowDataStore
from metaflow.plugins.datastores.local_storage import LocalStorage

from metaflow_extensions.gang.core.guard.coordinator import messages
from metaflow_extensions.gang.core.storage.traces import (
    MOST_FILES,
    MOST_NAME,
    NodeTraces,
    rank_of,
    traces_below,
    traces_prefix,
)

PREFIX = "mf.gang.traces/Train/7/train/2/0/1"
NOW = 1_700_000_000.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "traces"
    found.mkdir()
    return found


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def node(tmp_path: Path, folder: Path, said: list[str]) -> NodeTraces:
    datastore = FlowDataStore("Train", storage_impl=LocalStorage, ds_root=str(tmp_path / "store"))
    return NodeTraces(datastore, PREFIX, str(folder), said.append)


def trace(folder: Path, name: str, size: int = 100, age: float = 0.0, rank: int | None = None) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {} if rank is None else {"distributedInfo": {"backend": "gloo", "rank": rank, "world_size": 8}}
    content = json.dumps({"schemaVersion": 1, **about, "traceEvents": []}).ljust(size).encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    os.utime(path, (NOW - age, NOW - age))


def stored(tmp_path: Path) -> set[str]:
    place = tmp_path / "store" / PREFIX
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}


def of(record: dict[str, Any] | None) -> list[tuple[str, int | None]]:
    assert record is not None
    return [(file["name"], file["rank"]) for file in record["files"]]


def test_the_place_of_a_gangs_traces() -> None:
    assert traces_prefix("Train", "7", "train", "2", 0) == PREFIX.rpartition("/")[0]


def test_traces_are_stored_with_their_ranks_and_nothing_else_is(
    tmp_path: Path, folder: Path, node: NodeTraces, said: list[str]
) -> None:
    trace(folder, "host_12.170.pt.trace.json", rank=3)
    trace(folder, "deep/er/é?.pt.trace.json.gz", rank=4)
    trace(folder, "rank_5.pt.trace.json")
    trace(folder, "host_13.170.pt.trace.json")
    trace(folder, "notes.txt")
    (folder / "cut.pt.trace.json.gz").write_bytes(gzip.compress(b"x" * 9999)[:20])
    (folder / "empty.pt.trace.json").touch()
    (folder / "link.pt.trace.json").symlink_to("/etc/passwd")
    known = [
        ("cut.pt.trace.json.gz", None),
        ("deep/er/é%3F.pt.trace.json.gz", 4),
        ("host_12.170.pt.trace.json", 3),
        ("host_13.170.pt.trace.json", None),
        ("rank_5.pt.trace.json", 5),
    ]
    assert of(node.look()) == known and stored(tmp_path) == set()
    found = node.store()
    assert of(found) == known and found is not None
    assert stored(tmp_path) == {name for name, _ in known}
    assert (found["where"], found["left_out"]) == (str(tmp_path / "store" / PREFIX), "")
    assert said == [f"Stored 5 traces of torch's profiler in {found['where']}"]
    trace(folder, "late.pt.trace.json")
    assert node.store() == found  # it is done once
    messages.Checker(2).check({"op": "traces", "found": found}, b"")


def test_a_folder_without_traces_is_nothing_to_tell(folder: Path, node: NodeTraces, said: list[str]) -> None:
    assert node.look() is None and node.store() is None
    folder.rmdir()
    assert node.look() is None and node.store() is None and said == []


def test_of_too_many_the_newest_are_stored(folder: Path, tmp_path: Path, node: NodeTraces, said: list[str]) -> None:
    for number in range(MOST_FILES + 3):
        trace(folder, f"{number:03}.pt.trace.json", age=number)
    found = node.store()
    assert [name for name, _ in of(found)] == [f"{number:03}.pt.trace.json" for number in range(MOST_FILES)]
    assert len(stored(tmp_path)) == MOST_FILES
    assert found is not None and found["left_out"].startswith("Not stored: 3 traces of torch's profiler, 0.0 MiB.")
    assert found["left_out"] in said
    messages.Checker(2).check({"op": "traces", "found": found}, b"")


def test_what_would_be_too_much_or_has_too_long_a_name_is_left_out(
    folder: Path, node: NodeTraces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAFLOW_GANG_TRACE_MEGABYTES", "0.5")
    trace(folder, "large.pt.trace.json", size=2 << 20, age=1)
    trace(folder, "small.pt.trace.json", age=2)
    trace(folder, f"{'x' * 150}/{'y' * MOST_NAME}.pt.trace.json")
    found = node.store()
    assert of(found) == [("small.pt.trace.json", None)]
    assert found is not None and found["left_out"].startswith("Not stored: 2 traces of torch's profiler, 2.0 MiB. ")
    assert "up to 0.5 MiB in all (METAFLOW_GANG_TRACE_MEGABYTES)" in found["left_out"]


def test_a_datastore_that_fails_is_told_and_raises_nothing(
    tmp_path: Path, folder: Path, node: NodeTraces, said: list[str]
) -> None:
    (tmp_path / "store").write_text("no folder")
    trace(folder, "a.pt.trace.json")
    found = node.store()
    assert found is not None and found["files"] == []
    assert found["left_out"].startswith("Not stored: 1 trace of torch's profiler. ") and said == [found["left_out"]]


def test_the_rank_is_what_the_trace_says_or_else_its_name(folder: Path) -> None:
    trace(folder, "rank7.pt.trace.json", rank=2)
    trace(folder, "a-Rank-11_x.pt.trace.json")
    trace(folder, "prank.pt.trace.json")
    damaged = bytearray(gzip.compress(b"x" * 9999))
    damaged[10:14] = b"\xff" * 4
    (folder / "rank3.pt.trace.json.gz").write_bytes(damaged)
    ranks = {Path(found.path).name: rank_of(found.path) for found in traces_below(str(folder))}
    found = {"rank7.pt.trace.json": 2, "a-Rank-11_x.pt.trace.json": 11, "prank.pt.trace.json": None}
    assert ranks == {**found, "rank3.pt.trace.json.gz": 3}

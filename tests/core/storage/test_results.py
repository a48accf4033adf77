"""Folders of results, pushed into a real local datastore."""

from __future__ import annotations

import io
import os
import socket
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from metaflow.datastore.flow_datastore import FlowDataStore
from metaflow.plugins.datastores.local_storage import LocalStorage

from metaflow_extensions.gang.core.storage import results
from metaflow_extensions.gang.core.storage.results import BadFolder, cloud_folder, push_folder, results_prefix

PREFIX = "mf.torchrun/Train/7/train/out/0"
ODD_NAMES = [
    "a'; echo foo",
    'say "hi"',
    "é ☃ 日本",
    " lead and trail ",
    "%2E#&=+",
    "-rf",
    "back\\slash",
    "~",
]


@pytest.fixture
def datastore(tmp_path: Path) -> Any:
    return FlowDataStore("Train", storage_impl=LocalStorage, ds_root=str(tmp_path / "store"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pushed(tmp_path: Path) -> dict[str, bytes]:
    return tree(tmp_path / "store" / PREFIX)


def test_a_tree_arrives_as_it_is(tmp_path: Path, out: Path, datastore: Any) -> None:
    (out / "deep/er").mkdir(parents=True)
    (out / "empty folder").mkdir()
    (out / "model.bin").write_bytes(bytes(range(256)) * 100)
    (out / "deep/er/log.txt").write_text("hello")
    (out / "deep/nothing").touch()
    told: list[str] = []
    location = push_folder(datastore, str(out), PREFIX, told.append)
    assert location == str(tmp_path / "store" / PREFIX)
    assert pushed(tmp_path) == tree(out)
    assert set(pushed(tmp_path)) == {"model.bin", "deep/er/log.txt", "deep/nothing"}
    assert told == []


def test_a_second_push_overwrites(tmp_path: Path, out: Path, datastore: Any) -> None:
    for content in (b"first", b"second"):
        (out / "file").write_bytes(content)
        push_folder(datastore, out, PREFIX + "/")
    assert pushed(tmp_path) == {"file": b"second"}


def test_odd_names(tmp_path: Path, out: Path, datastore: Any) -> None:
    for name in ODD_NAMES:
        (out / name).mkdir()
        (out / name / name).write_text(name)
    push_folder(datastore, out, PREFIX)
    assert pushed(tmp_path) == {f"{name}/{name}": name.encode() for name in ODD_NAMES}


def test_what_a_datastore_would_lose_of_a_name_is_spelled_out(tmp_path: Path, out: Path, datastore: Any) -> None:
    names = {"a?1": "a%3F1", "two\nlines\t": "two%0Alines%09", "caf\udce9": "caf%E9", "50%": "50%", "é?": "é%3F"}
    try:
        for name in names:
            (out / name).write_text(name, errors="surrogateescape")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    push_folder(datastore, out, PREFIX)
    assert pushed(tmp_path) == {spelled: os.fsencode(name) for name, spelled in names.items()}
    (out / "caf%E9").write_text("already spelled out")
    with pytest.raises(BadFolder, match="would have the same name"):
        push_folder(datastore, out, PREFIX)


def test_links_are_followed_but_not_in_circles(tmp_path: Path, out: Path, datastore: Any) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/blob").write_text("weights")
    (out / "model").symlink_to(tmp_path / "cache/blob")
    (out / "cache").symlink_to(tmp_path / "cache")
    (out / "again").symlink_to(tmp_path / "cache")
    (out / "sub").mkdir()
    (out / "sub/up").symlink_to(out)
    (out / "dangling").symlink_to(out / "nowhere")
    (out / "itself").symlink_to(out / "itself")
    told: list[str] = []
    push_folder(datastore, out, PREFIX, told.append)
    assert pushed(tmp_path) == dict.fromkeys(["model", "cache/blob", "again/blob"], b"weights")
    assert [sentence.partition("' ")[2] for sentence in told] == [
        "was not pushed to the datastore: No such file or directory.",
        "was not pushed to the datastore: Too many levels of symbolic links.",
        "leads back to a folder that it is in: it was not pushed to the datastore.",
    ]


def test_what_is_no_file_is_left_out(
    tmp_path: Path, out: Path, datastore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(out / "pipe")
    monkeypatch.chdir(out)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket")
        (out / "file").write_text("x")
        told: list[str] = []
        push_folder(datastore, ".", PREFIX, told.append)
    assert pushed(tmp_path) == {"file": b"x"}
    assert [sentence.partition(" ")[0] for sentence in told] == ["'./pipe'", "'./socket'"]


def test_a_missing_folder_is_told_and_no_error(tmp_path: Path, datastore: Any) -> None:
    told: list[str] = []
    assert push_folder(datastore, tmp_path / "missing", PREFIX, told.append) is None
    assert len(told) == 1
    assert "There is no folder" in told[0]
    assert not (tmp_path / "store").exists()


def test_an_empty_folder_is_told(tmp_path: Path, out: Path, datastore: Any) -> None:
    (out / "sub").mkdir()
    told: list[str] = []
    assert push_folder(datastore, out, PREFIX, told.append) == str(tmp_path / "store" / PREFIX)
    assert len(told) == 1
    assert "There is no file in the folder" in told[0]


def test_a_file_is_no_folder(tmp_path: Path, out: Path, datastore: Any) -> None:
    (out / "file").touch()
    (out / "dangling").symlink_to("nowhere")
    for name in ("file", "dangling"):
        with pytest.raises(BadFolder, match="is no folder"):
            push_folder(datastore, out / name, PREFIX)


def test_a_large_file_is_not_held_in_memory(tmp_path: Path, out: Path, datastore: Any) -> None:
    size = 64 << 20
    with open(out / "checkpoint", "wb") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write(b"middle")
    tracemalloc.start()
    try:
        push_folder(datastore, out, PREFIX)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    stored = tmp_path / "store" / PREFIX / "checkpoint"
    assert peak < 8 << 20
    assert stored.stat().st_size == size
    with open(stored, "rb") as copy:
        copy.seek(size // 2 - 1)
        assert copy.read(8) == b"\0middle\0"


def test_a_large_file_can_be_read_in_pieces_as_s3_does(out: Path) -> None:
    content = os.urandom(results._SMALL_FILE + 4321)
    (out / "file").write_bytes(content)
    with results.MappedFile(str(out / "file"), "rb") as file:
        assert isinstance(file, io.RawIOBase)
        assert file.readable()
        assert file.seekable()
        pieces = [file.read(1 << 20)]
        while pieces[-1]:
            pieces.append(file.read(1 << 20))
        assert b"".join(pieces) == content
        file.seek(0)
        assert bytes(file.read()) == content
        assert file.read() == b""
        file.seek(5)
        assert file.read(None) == content[5:]


def test_many_files_and_large_ones_between_them(tmp_path: Path, out: Path, datastore: Any) -> None:
    for number in range(2 * results._BATCH_FILES + 5):
        (out / f"{number:04}").write_text(str(number))
    for name in ("0100-large", "0300-large"):
        with open(out / name, "wb") as file:
            file.truncate(results._SMALL_FILE + 1)
    push_folder(datastore, out, PREFIX)
    assert pushed(tmp_path) == tree(out)


def test_batches_are_bounded() -> None:
    def sizes(files: Iterable[int]) -> list[list[int]]:
        made = (results._File(str(number), "", size) for number, size in enumerate(files))
        return [[file.size for file in batch] for batch in results._batches(made)]

    small, large = results._SMALL_FILE, results._SMALL_FILE + 1
    assert sizes([]) == []
    assert sizes([1, large, 2]) == [[large], [1, 2]]
    assert sizes([small] * 9) == [[small] * 8, [small]]
    assert [len(batch) for batch in sizes([0] * 401)] == [200, 200, 1]


def test_a_file_that_vanishes_meanwhile_is_told(tmp_path: Path, out: Path, datastore: Any) -> None:
    told: list[str] = []
    gone = results._File("gone", str(out / "gone"), 1)
    assert list(results._opened([gone], told.append)) == []
    assert told == [f"{str(out / 'gone')!r} was not pushed to the datastore: it was removed meanwhile."]


def test_prefixes() -> None:
    assert results_prefix("mf.torchrun", "Train", "7", "train") == "mf.torchrun/Train/7/train"
    assert (
        results_prefix("mf.deepspeed", "Train", "argo-x-7", "train", "12", 0)
        == "mf.deepspeed/Train/argo-x-7/train/12/0"
    )
    assert results_prefix("s", "a/b", "..", ".", "a'; echo") == "s/a%2Fb/%2E%2E/%2E/a'; echo"


@pytest.mark.parametrize(
    ("local", "wanted", "expected"),
    [
        ("out", None, "out"),
        ("/tmp/out/", None, "tmp/out"),
        ("../out", None, "out"),
        ("./a/../b", None, "b"),
        (".", None, ""),
        (Path("/x y"), None, "x y"),
        ("out", "models/v1", "models/v1"),
        ("out", "/models//v1/./", "models/v1"),
        ("out", "", ""),
        ("caf\udce9", None, "caf%E9"),
    ],
)
def test_folders_in_the_datastore(local: Any, wanted: str | None, expected: str) -> None:
    assert cloud_folder(local, wanted) == expected


@pytest.mark.parametrize("wanted", ["..", "a/../../b", "/.."])
def test_a_folder_that_leads_out(wanted: str) -> None:
    with pytest.raises(BadFolder, match="leads out of its place"):
        cloud_folder("out", wanted)

"""Objects in a datastore by key, and a training's folder kept there: over a real local datastore."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from metaflow.plugins.datastores.local_storage import LocalStorage

from metaflow_extensions.gang.core.exceptions import GangException, ToolMissing
from metaflow_extensions.gang.core.storage.folder_sync import FolderSync
from metaflow_extensions.gang.core.storage.objects import BadKey, ObjectNotFound, Objects, storage_of
from metaflow_extensions.gang.core.storage.results import BadFolder


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(LocalStorage(str(tmp_path / "store")), "Train/7", older="old/Train/7")


def test_objects_are_put_fetched_and_listed(objects: Objects, tmp_path: Path) -> None:
    objects.put("a.txt", "é")
    objects.put("a.txt", "not this")
    objects.put("b/c.bin", b"\xff", overwrite=True)
    objects.put("b/c.bin", b"\xfe", overwrite=True)
    (tmp_path / "big").write_bytes(os.urandom(9 << 20))
    objects.put_file("b/d/big", tmp_path / "big")
    assert objects.get("a.txt") == "é".encode()
    assert objects.get("/b/./c.bin") == b"\xfe"
    objects.get_file("b/d/big", tmp_path / "new" / "folder" / "big")
    assert (tmp_path / "new/folder/big").read_bytes() == (tmp_path / "big").read_bytes()
    assert objects.keys() == ["a.txt", "b/c.bin", "b/d/big"]
    assert objects.keys(["b"]) == ["b/c.bin", "b/d/big"]
    assert [(entry.key, entry.is_object) for entry in objects.entries(["b"])] == [("b/c.bin", True), ("b/d", False)]
    assert objects.keys(["nowhere"]) == []
    assert objects.url("b/c.bin") == str(tmp_path / "store/Train/7/b/c.bin")


def test_what_is_missing_leaves_no_file(objects: Objects, tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFound, match="Train/7/b"):
        objects.get_file("b", tmp_path / "here" / "b")
    assert list((tmp_path / "here").iterdir()) == []
    objects.put("b/c", "")
    with pytest.raises(ObjectNotFound):
        objects.get("b")


def test_an_older_place_is_read_after_the_first_and_never_written(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    older = Objects(storage, "old/Train/7")
    older.put("both", "old")
    older.put("old only", "old")
    objects = Objects(storage, "Train/7", older="old/Train/7")
    objects.put("both", "new")
    assert objects.keys() == ["both", "old only"]
    assert [objects.get(key) for key in ("both", "old only")] == [b"new", b"old"]
    assert older.get("both") == b"old"


@pytest.mark.parametrize("key", ["", "/", "..", "a/../../b", "."])
def test_a_key_cannot_lead_out(objects: Objects, key: str) -> None:
    for act in (lambda: objects.put(key, ""), lambda: objects.get(key)):
        with pytest.raises(BadKey, match="leave out"):
            act()


class Sly(LocalStorage):
    """A datastore with keys that are no paths, as an object store can have."""

    def list_content(self, paths: list[str]) -> Any:
        names = ["/etc/passwd", "../../up", "a//b", "./c", "fine"]
        return [self.list_content_result(f"{paths[0]}/{name}", True) for name in names]


def test_a_key_that_is_no_path_is_not_listed(tmp_path: Path) -> None:
    assert Objects(Sly(str(tmp_path)), "Train/7").keys() == ["fine"]


def test_a_datastore_that_is_not_configured(tmp_path: Path) -> None:
    with pytest.raises(GangException, match="set METAFLOW_DATASTORE_SYSROOT_AZURE"):
        storage_of("azure")
    with pytest.raises(GangException, match="no datastore 'floppy'"):
        storage_of("floppy")
    assert storage_of("local", str(tmp_path)).datastore_root == str(tmp_path)


def test_azure_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("azure.storage.blob", "azure.identity"):
        monkeypatch.setitem(sys.modules, name, None)  # as good as not installed
    with pytest.raises(ToolMissing, match="azure-storage-blob"):
        storage_of("azure", "container/prefix")


@pytest.fixture
def sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FolderSync]:
    """Makes a node's sync; the training's folder is in the working folder."""
    monkeypatch.chdir(tmp_path)

    def make(folder: str = "out/training", **options: Any) -> FolderSync:
        return FolderSync(lambda: Objects(LocalStorage(str(tmp_path / "store")), "Train/7"), folder, **options)

    return make


def epoch(sync: FolderSync, text: str) -> None:
    """An epoch that writes a checkpoint, and its end."""
    folder = Path(sync.folder, "checkpoint")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model").write_text(text)
    sync.on_epoch_end(None, None, None, model=None)


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_each_node_gets_back_what_it_pushed_last(
    sync: Callable[..., FolderSync], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for node in (0, 1, 10):
        for number in (1, 2):
            epoch(sync(local_rank=0, node_index=node, push_from_all_nodes=True), f"node {node} epoch {number}")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["training"]
    assert {path.name for path in (tmp_path / "store/Train/7/out").iterdir()} == {
        f"training-node-{node}.tar.gz" for node in (0, 1, 10)
    }
    assert f"[gang] Pushed the folder 'out/training' to {tmp_path}/store/Train/7/out/training-node-10.tar.gz" in (
        capfd.readouterr().err.splitlines()
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    sync(node_index=1).download()
    assert files(elsewhere) == {"out/training/checkpoint/model": "node 1 epoch 2"}
    sync().download()
    assert files(elsewhere) == {"out/training/checkpoint/model": "node 0 epoch 2"}
    sync().download(all_nodes=True)
    assert files(elsewhere / "out") == {
        "training/checkpoint/model": "node 0 epoch 2",
        **{f"training-node-{node}/training/checkpoint/model": f"node {node} epoch 2" for node in (0, 1, 10)},
    }


def test_who_pushes(
    sync: Callable[..., FolderSync], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for variable in ("LOCAL_RANK", "MF_PARALLEL_NODE_INDEX"):
        monkeypatch.delenv(variable, raising=False)
    for rank, node in ((1, 0), (0, 1), (None, 0), (0, None)):
        epoch(sync(local_rank=rank, node_index=node), "no")
    assert not (tmp_path / "store").exists()
    said = capfd.readouterr().err.splitlines()
    assert said == [
        "[gang] The folder 'out/training' is not pushed by this process, which is not told which rank of its node it "
        "is (LOCAL_RANK, or local_rank=).",
        "[gang] The folder 'out/training' is not pushed by this process, which is not told which node this is "
        "(MF_PARALLEL_NODE_INDEX, or node_index=).",
    ]
    nothing = sync("elsewhere", local_rank=0, node_index=0)
    for _ in range(2):
        nothing.on_epoch_end(None, None, None)
    assert capfd.readouterr().err == (
        f"[gang] The folder 'elsewhere' is not pushed: there is none in {tmp_path} yet.\n"
    )
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("MF_PARALLEL_NODE_INDEX", "0")
    epoch(sync(), "yes")
    assert files_of_store(tmp_path) == ["training-node-0.tar.gz"]


def files_of_store(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "store").rglob("*.tar.gz")]


def test_a_push_that_fails_is_said_and_the_next_one_tried(
    sync: Callable[..., FolderSync], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store").write_text("in the way")
    callback = sync(local_rank=0, node_index=0)
    epoch(callback, "first")
    assert "[gang] The folder 'out/training' was not pushed to the datastore: " in capfd.readouterr().err
    (tmp_path / "store").unlink()
    epoch(callback, "second")
    assert files_of_store(tmp_path) == ["training-node-0.tar.gz"]


def test_nothing_to_push_or_fetch(sync: Callable[..., FolderSync], tmp_path: Path) -> None:
    assert sync().push() is None
    for all_nodes in (False, True):
        with pytest.raises(ObjectNotFound, match=r"training-node-0\.tar\.gz"):
            sync().download(all_nodes=all_nodes)
    assert files(tmp_path) == {}
    with pytest.raises(BadFolder, match="no name of its own"):
        sync(".")


@pytest.mark.parametrize("filtered", [True, False], ids=["with a filter", "without"])
def test_an_archive_cannot_write_outside(
    filtered: bool,
    sync: Callable[..., FolderSync],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As Python's filter has it, or by our own rule where Python has none."""
    if not filtered:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    elif not hasattr(tarfile, "data_filter"):
        pytest.skip("this Python has no filter")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in ("../evil", "training/good", "training/../../evil"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"text"))
        link = tarfile.TarInfo("training/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    store = tmp_path / "store/Train/7"
    store.mkdir(parents=True)
    (store / "training-node-0.tar.gz").write_bytes(packed.getvalue())
    here = tmp_path / "deep/here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    sync("training").download()
    assert files(tmp_path / "deep") == {"here/training/good": "text"}
    said = capfd.readouterr().err
    for name in ("../evil", "training/../../evil", "training/link"):
        assert f"[gang] {name!r} was left out" in said

"""What flows written for metaflow-deepspeed import: by its old names, with a note, over a real local datastore."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import metaflow
import pytest
from metaflow.plugins import hf_callbacks
from metaflow.plugins.az_store import AzureBlob, AzureDatastoreNotFoundError, AzureListPathResult, AzureObject
from metaflow.plugins.datastores.local_storage import LocalStorage
from support.flows import flow_environment
from support.requirements import require_packages

from metaflow_extensions.gang.core.storage.objects import ObjectNotFound, Objects

RUN_S = 120
LIBS = "metaflow.plugins.deepspeed_libs."
NAMES = [
    (LIBS + "executor", "DeepspeedExecutor", "metaflow_extensions.gang.launchers.deepspeed.launcher"),
    (LIBS + "constants", "DEEPSPEED_SUFFIX", "metaflow_extensions.gang.launchers.deepspeed.constants"),
    (LIBS + "datastore", "DeepspeedDatastore", "metaflow_extensions.gang.core.storage.objects"),
    (LIBS + "exceptions", "DeepspeedException", "metaflow_extensions.gang.launchers.deepspeed.exceptions"),
    (LIBS + "hugging_face.card_callback", "__dir__", "metaflow.huggingface_card_callback"),
    ("metaflow.plugins.hf_callbacks", "DeepspeedHFTrainerS3Sync", "metaflow_extensions.gang.core.storage.folder_sync"),
    (
        "metaflow.plugins.hf_callbacks",
        "DeepspeedHFTrainerAzureBlobSync",
        "metaflow_extensions.gang.core.storage.folder_sync",
    ),
    ("metaflow.plugins.az_store", "AzureBlob", "metaflow_extensions.gang.core.storage.objects"),
]

FLOW = """
from metaflow import FlowSpec, current, step
from metaflow.plugins.deepspeed_libs.constants import DEEPSPEED_SUFFIX


class Old(FlowSpec):
    @step
    def start(self):
        from metaflow.plugins.deepspeed_libs.datastore import DeepspeedDatastore

        datastore = DeepspeedDatastore(self._datastore.parent_datastore, current.pathspec)
        datastore.put("out/0/a.txt", "hello")
        self.location = datastore.get_datastore_file_location("out/0/a.txt")
        self.found = [(blob.text, blob.url) for blob in datastore.get_many(["out/0/a.txt"])]
        self.listed = [found.url for found in datastore.list_paths(["out"])]
        self.expected = f"{DEEPSPEED_SUFFIX}/{current.flow_name}/{current.run_id}/start/out/0/a.txt"
        self.next(self.end)

    @step
    def end(self):
        from metaflow.plugins.deepspeed_libs.datastore import DeepspeedDatastore
        from metaflow.plugins.deepspeed_libs.exceptions import DatastoreKeyNotFoundError

        try:
            DeepspeedDatastore(self._datastore.parent_datastore, current.pathspec).get("nothing")
        except DatastoreKeyNotFoundError as error:
            self.missing = str(error)


if __name__ == "__main__":
    Old()
"""


def run_script(folder: Path, text: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """A program of its own, as a training script is."""
    script = folder / "script.py"
    script.write_text(text)
    return subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env=flow_environment(changes),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("module", "name", "new"), NAMES, ids=[name for _, name, _ in NAMES])
def test_an_old_name_works_and_says_the_new_one_once(module: str, name: str, new: str, tmp_path: Path) -> None:
    text = f"import metaflow\nfor _ in range(3):\n    from {module} import {name}\nprint({name} is not None)"
    done = run_script(tmp_path, text)
    assert (done.returncode, done.stdout) == (0, "True\n"), done
    (note,) = re.findall(r"^(.*DeprecationWarning.*)$", done.stderr, re.MULTILINE)
    assert note.startswith(f"{tmp_path / 'script.py'}:3: DeprecationWarning: {module} is a name of "), note
    assert new in note


def test_nothing_heavy_is_imported_and_nothing_said_without_an_old_name(tmp_path: Path) -> None:
    text = (
        "import sys, metaflow, metaflow.plugins.hf_callbacks, metaflow.plugins.az_store\n"
        "print(sorted({'transformers', 'azure.storage', 'boto3', 'torch'} & set(sys.modules)))"
    )
    done = run_script(tmp_path, text)
    assert done.stdout == "[]\n", done
    assert run_script(tmp_path, "import metaflow").stderr == ""


@pytest.mark.slow
def test_a_flow_finds_its_results_by_the_old_names(flow_run: Callable[..., Any], tmp_path: Path) -> None:
    run = flow_run(FLOW).ok(RUN_S)
    assert run.artifact("start", "location") == run.artifact("start", "expected")
    ((text, url),) = run.artifact("start", "found")
    assert (text, Path(url).read_text()) == ("hello", "hello")
    assert run.artifact("start", "listed") == [str(Path(url).parent)]
    assert "nothing" in run.artifact("end", "missing")


class LocalBlob(AzureBlob):  # type: ignore[misc]
    """AzureBlob over this disk."""

    root = ""

    def _storage(self) -> Any:
        return LocalStorage(self.root)


@pytest.fixture
def blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[AzureBlob]:
    monkeypatch.setattr(LocalBlob, "root", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return LocalBlob


def test_azure_blob_as_the_old_examples_use_it(blob: type[AzureBlob], tmp_path: Path) -> None:
    store = blob(run_pathspec="mf.deepspeed/Train/7", step_name="train")
    (tmp_path / "x").write_text("x")
    put = store.put_files([("out/0/x.txt", "x"), ("out/1/x.txt", "x")])
    assert put == [f"{tmp_path}/store/mf.deepspeed/Train/7/train/out/{node}/x.txt" for node in (0, 1)]
    paths = store.list_paths(["out"])
    assert paths == [AzureListPathResult(url, f"out/{node}/x.txt") for node, url in enumerate(put)]
    assert store.list_paths() == paths
    store.get_files([(path.key, path.key) for path in paths])
    assert (tmp_path / "out/1/x.txt").read_text() == "x"
    store.put("bytes", b"\xff")
    assert store.get("bytes") == AzureObject(b"\xff", store.get_datastore_key_location("bytes"), "bytes", None)
    assert store.get("out/0/x.txt").text == "x"
    with pytest.raises(AzureDatastoreNotFoundError, match="out/2"):
        store.get("out/2")


def test_azure_blob_reads_what_the_old_package_wrote(blob: type[AzureBlob], tmp_path: Path) -> None:
    Objects(LocalStorage(str(tmp_path / "store")), f"{tmp_path}/store/Train/7").put("a", "old")
    assert blob(run_pathspec="Train/7").get("a").text == "old"


def test_azure_blob_wants_one_place(blob: type[AzureBlob]) -> None:
    for places in ({}, {"blob_path": "a", "run_pathspec": "b"}):
        with pytest.raises(ValueError, match="one of run"):
            blob(**places)


@pytest.mark.slow
def test_the_callbacks_say_what_they_need() -> None:
    with pytest.raises(metaflow.exception.MetaflowException, match="METAFLOW_DATATOOLS_S3ROOT"):
        hf_callbacks.DeepspeedHFTrainerS3Sync(run_pathspec="Train/7")
    with pytest.raises(ValueError, match="run_pathspec"):
        hf_callbacks.DeepspeedHFTrainerAzureBlobSync()
    with pytest.raises(metaflow.exception.MetaflowException, match="METAFLOW_DATASTORE_SYSROOT_AZURE"):
        hf_callbacks.DeepspeedHFTrainerAzureBlobSync(run_pathspec="Train/7")
    made = hf_callbacks.DeepspeedHFTrainerS3Sync(s3_root="s3://bucket/folder", local_rank=0, node_index=2)
    assert (made.folder, made.local_rank, made.node_index, made.push_from_all_nodes) == (
        "training_outputs",
        0,
        2,
        False,
    )
    with pytest.raises(AttributeError, match="Unknown"):
        hf_callbacks.Unknown  # noqa: B018


def test_fetching_what_nobody_has_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hf_callbacks, "storage_of", lambda kind, root: LocalStorage(str(tmp_path / "store")))
    made = hf_callbacks.DeepspeedHFTrainerS3Sync(s3_root="s3://bucket/folder")
    made.download(all_nodes=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ObjectNotFound):
        made.download()


def test_the_callbacks_are_callbacks_of_transformers() -> None:
    require_packages("transformers")
    import transformers

    made = hf_callbacks.DeepspeedHFTrainerS3Sync(s3_root="s3://bucket/folder")
    assert isinstance(made, transformers.TrainerCallback)
    assert made.on_step_end(None, None, None) is None


def test_exceptions_are_found_where_the_docs_had_them() -> None:
    program = """
import metaflow
for launcher, name in (("torchrun", "TorchrunException"), ("deepspeed", "DeepspeedException"), ("mpi", "MpiException"),
                       ("ray", "RayNotInstalledException"), ("tensorflow", "TooLate")):
    package = f"metaflow_extensions.gang.launchers.{launcher}"
    exec(f"import {package}.exceptions as now, {package}.failure as before; from {package}.failure import {name}")
    assert globals()[name] is getattr(now, name) is getattr(before, name)
from metaflow_extensions.gang.launchers.jax.decorator import JaxMissing
try:
    from metaflow_extensions.gang.launchers.torchrun.failure import Nothing
except ImportError:
    print("ok")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=RUN_S)
    assert done.stdout == "ok\n", done.stderr

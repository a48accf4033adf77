"""``metaflow.plugins.hf_callbacks``, as flows written for metaflow-deepspeed import it: Trainer callbacks that push.

The two classes are made when they are first asked for: they are callbacks of transformers where that is installed, and
only then is it imported. Where it is not, they can still download.
"""

from __future__ import annotations

from typing import Any

from metaflow.exception import MetaflowException
from metaflow.metaflow_config import DATASTORE_SYSROOT_AZURE, DATATOOLS_S3ROOT

from ..core.legacy_names import note_move
from ..core.storage.folder_sync import FolderSync
from ..core.storage.objects import ObjectNotFound, Objects, storage_of

note_move(
    "metaflow.plugins.hf_callbacks",
    "metaflow_extensions.gang.core.storage.folder_sync (FolderSync), which is for every datastore",
)


class _Sync(FolderSync):
    """As FolderSync, with what the older package did where nobody has pushed."""

    def download(self, all_nodes: bool = False) -> None:
        """See FolderSync; but with ``all_nodes`` it does nothing where nobody has pushed."""
        try:
            super().download(all_nodes)
        except ObjectNotFound:
            if not all_nodes:
                raise


class _S3Sync(_Sync):
    """Pushes the training's folder to S3 at each epoch's end, as ``<folder>-node-<i>.tar.gz``.

    Parameters
    ----------
    run_pathspec : str, optional
        ``<flow>/<run>``: the archives go where ``metaflow.S3(run=...)`` of that run finds them.
    s3_root : str, optional
        Where they go without a run, e.g. "s3://bucket/folder".
    training_outputs_path : str
        The folder.
    local_rank, node_index, push_from_all_nodes
        As of FolderSync.
    """

    def __init__(
        self,
        run_pathspec: str | None = None,
        s3_root: str | None = None,
        training_outputs_path: str = "training_outputs",
        local_rank: int | None = None,
        node_index: int | None = None,
        push_from_all_nodes: bool = False,
    ) -> None:
        root = DATATOOLS_S3ROOT if run_pathspec or not s3_root else s3_root
        if not root:
            raise MetaflowException(
                "Metaflow is not configured for S3: set METAFLOW_DATATOOLS_S3ROOT or METAFLOW_DATASTORE_SYSROOT_S3, or "
                "give an s3_root and no run_pathspec."
            )
        super().__init__(
            lambda: Objects(storage_of("s3", root), run_pathspec or ""),
            training_outputs_path,
            local_rank,
            node_index,
            push_from_all_nodes,
        )


class _AzureSync(_Sync):
    """Pushes the training's folder to Azure's blob storage at each epoch's end, as ``<folder>-node-<i>.tar.gz``.

    Parameters
    ----------
    run_pathspec : str
        Where the archives go, relative to the datastore's root: ``<flow>/<run>``.
    training_outputs_path, local_rank, node_index, push_from_all_nodes
        As of DeepspeedHFTrainerS3Sync.
    """

    def __init__(
        self,
        run_pathspec: str | None = None,
        training_outputs_path: str = "training_outputs",
        local_rank: int | None = None,
        node_index: int | None = None,
        push_from_all_nodes: bool = False,
    ) -> None:
        if not run_pathspec:
            raise ValueError("DeepspeedHFTrainerAzureBlobSync needs a run_pathspec: '<flow>/<run>'.")
        if not DATASTORE_SYSROOT_AZURE:
            raise MetaflowException("Metaflow is not configured for Azure: set METAFLOW_DATASTORE_SYSROOT_AZURE.")
        # The older package gave Azure the datastore's root twice.
        super().__init__(
            lambda: Objects(storage_of("azure"), run_pathspec, older=f"{DATASTORE_SYSROOT_AZURE}/{run_pathspec}"),
            training_outputs_path,
            local_rank,
            node_index,
            push_from_all_nodes,
        )


_SYNCS = {"DeepspeedHFTrainerS3Sync": _S3Sync, "DeepspeedHFTrainerAzureBlobSync": _AzureSync}


def __getattr__(name: str) -> Any:
    if name not in _SYNCS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = type(
        name, (_SYNCS[name], _callback_of_transformers()), {"__doc__": _SYNCS[name].__doc__, "__module__": __name__}
    )
    globals()[name] = made
    return made


def _callback_of_transformers() -> type:
    try:
        from transformers import TrainerCallback  # type: ignore[import-not-found,unused-ignore]
    except (ImportError, RuntimeError):
        # Some versions say the latter where what they import is missing. No Trainer is here to call it then.
        return object
    return TrainerCallback  # type: ignore[no-any-return,unused-ignore]

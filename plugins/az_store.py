"""``metaflow.plugins.az_store``, as flows written for metaflow-deepspeed import it: objects in Azure's blob storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from metaflow import current

from ..core.legacy_names import note_move
from ..core.storage.objects import ObjectNotFound, Objects, storage_of, text_of

note_move(
    "metaflow.plugins.az_store", "metaflow_extensions.gang.core.storage.objects (Objects), which is for every datastore"
)

AzureDatastoreNotFoundError = ObjectNotFound


class AzureObject(NamedTuple):
    """An object: its content, where it is, its key, and the content as text (None where it is no UTF-8)."""

    blob: bytes
    url: str
    key: str
    text: str | None


class AzureListPathResult(NamedTuple):
    """Where an object is, and its key."""

    url: str
    key: str


class AzureBlob:
    """The objects below one place of the datastore in Azure that Metaflow is configured for.

    Parameters
    ----------
    run : FlowSpec or metaflow.Run, optional
        The place is this run's; of a flow, the run that is going on. Of no account beside one of the next two.
    blob_path : str, optional
        ... or this, relative to the datastore's root.
    run_pathspec : str, optional
        ... or this, e.g. ``f"{DEEPSPEED_SUFFIX}/{flow_name}/{run_id}"``, relative to the datastore's root.
    step_name : str, optional
        A folder below the place.
    """

    def __init__(
        self,
        run: Any = None,
        blob_path: str | None = None,
        run_pathspec: str | None = None,
        step_name: str | None = None,
    ) -> None:
        given = [place for place in (blob_path, run_pathspec) if place]
        if not given and run is not None:  # beside one of these, the older package took a run without a use for it
            given = [_pathspec(run)]
        if len(given) != 1:
            raise ValueError("AzureBlob needs one of run, blob_path and run_pathspec, and of the last two only one.")
        storage = self._storage()
        prefix = "/".join(piece.strip("/") for piece in (given[0], step_name) if piece)
        # The older package gave Azure the datastore's root twice.
        self._objects = Objects(storage, prefix, older=f"{storage.datastore_root}/{prefix}")

    def put(self, key: str, obj: str | bytes, overwrite: bool = False) -> None:
        """Stores text or bytes; what is there already stays unless ``overwrite``."""
        self._objects.put(key, obj, overwrite)

    def get(self, key: str) -> AzureObject:
        """An object. Raises AzureDatastoreNotFoundError where there is none."""
        content = self._objects.get(key)
        return AzureObject(content, self._objects.url(key), key.strip("/"), text_of(content))

    def list_paths(self, keys: Sequence[str] | None = None) -> list[AzureListPathResult]:
        """Every object in these folders, or in all, and in those below."""
        found = self._objects.keys([""] if keys is None else keys)
        return [AzureListPathResult(self._objects.url(key), key) for key in found]

    def put_files(self, key_paths: Sequence[tuple[str, str]], overwrite: bool = False) -> list[str]:
        """Stores files, each under its key, and says where they are."""
        for key, path in key_paths:
            self._objects.put_file(key, path, overwrite)
        return [self._objects.url(key) for key, _ in key_paths]

    def get_files(self, key_paths: Sequence[tuple[str, str]], as_binary: bool = False) -> None:
        """Writes objects into files, byte for byte. (``as_binary`` is what older callers say; text stays text.)"""
        for key, path in key_paths:
            self._objects.get_file(key, path)

    def get_datastore_key_location(self, key: str | None = None) -> str:
        """Where the object with this key is, or the whole place."""
        return self._objects.url(key or "")

    def _storage(self) -> Any:
        return storage_of("azure")


def _pathspec(run: Any) -> str:
    if isinstance(getattr(run, "pathspec", None), str):
        return str(run.pathspec)
    return f"{current.flow_name}/{current.run_id}"

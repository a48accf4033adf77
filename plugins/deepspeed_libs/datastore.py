"""``metaflow.plugins.deepspeed_libs.datastore``, as flows written for metaflow-deepspeed import it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ...core.legacy_names import note_move
from ...core.metaflow_compat.datastores import storage_of_flow
from ...core.storage.objects import Objects, text_of
from ...core.storage.results import results_prefix
from ...launchers.deepspeed.constants import DEEPSPEED_SUFFIX

note_move("metaflow.plugins.deepspeed_libs.datastore", "metaflow_extensions.gang.core.storage.objects (Objects)")


class DeepspeedDatastoreBlob(NamedTuple):
    """An object: its content, where it is, and the content as text (None where it is no UTF-8)."""

    blob: bytes
    url: str
    text: str | None


class DeepspeedListPathResult(NamedTuple):
    """Where something is."""

    url: str


class DeepspeedDatastore:
    """The objects of one step's gang, in whichever datastore the flow uses.

    Parameters
    ----------
    flow_datastore : metaflow.datastore.FlowDataStore
        The flow's.
    pathspec : str
        Of a task: ``<flow>/<run>/<step>/<task>``.
    """

    def __init__(self, flow_datastore: Any, pathspec: str) -> None:
        _, run_id, step_name, _ = pathspec.split("/")
        storage = storage_of_flow(flow_datastore)
        self._prefix = results_prefix(DEEPSPEED_SUFFIX, flow_datastore.flow_name, run_id, step_name)
        # The older package gave Azure and Google the datastore's root twice.
        older = f"{storage.datastore_root}/{self._prefix}" if storage.TYPE in ("azure", "gs") else None
        self._objects = Objects(storage, self._prefix, older)

    @property
    def get_storage_root(self) -> str:
        """Where all gangs' objects are, relative to the datastore's root."""
        return DEEPSPEED_SUFFIX

    def get_datastore_key_location(self) -> str:
        """Where this gang's are."""
        return self._prefix

    def get_datastore_file_location(self, key: str) -> str:
        """Where the object with this key is."""
        return f"{self._prefix}/{key}"

    def put(self, key: str, obj: str | bytes, overwrite: bool = False) -> None:
        """Stores text or bytes; what is there already stays unless ``overwrite``."""
        self._objects.put(key, obj, overwrite)

    def put_files(self, key_paths: Sequence[tuple[str, str]], overwrite: bool = False) -> list[str]:
        """Stores files, each under its key, and says where each is, relative to the datastore's root."""
        for key, path in key_paths:
            self._objects.put_file(key, path, overwrite)
        return [self.get_datastore_file_location(key) for key, _ in key_paths]

    def get(self, key: str) -> DeepspeedDatastoreBlob:
        """An object. Raises ObjectNotFound, whose older name is DatastoreKeyNotFoundError."""
        content = self._objects.get(key)
        return DeepspeedDatastoreBlob(content, self._objects.url(key), text_of(content))

    def get_many(self, keys: Sequence[str]) -> list[DeepspeedDatastoreBlob]:
        """Several objects. Raises as ``get``."""
        return [self.get(key) for key in keys]

    def list_paths(self, keys: Sequence[str]) -> list[DeepspeedListPathResult]:
        """What is in these folders, one level deep."""
        return [DeepspeedListPathResult(self._objects.url(entry.key)) for entry in self._objects.entries(keys)]

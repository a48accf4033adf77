"""Objects below a prefix in any of Metaflow's datastores: put, fetched and listed by key."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from metaflow.exception import MetaflowException

from ..exceptions import GangException, ToolMissing
from ..metaflow_compat.datastores import configured_root, storages
from .results import MappedFile


class ObjectNotFound(GangException):
    """There is no object at that place in the datastore."""

    headline = "Not in the datastore"

    def __init__(self, where: str) -> None:
        super().__init__(f"There is no object at {where!r} in the datastore.")


class BadKey(ValueError):
    """A key that names nothing, or leads out of its place in the datastore."""


@dataclass(frozen=True)
class Entry:
    """What a folder holds: an object, or another folder."""

    key: str
    is_object: bool


class Objects:
    """The objects below one prefix. Keys are relative to it, with slashes between folders.

    Parameters
    ----------
    storage : metaflow.datastore.DataStoreStorage
        The datastore's own, that of a flow or by ``storage_of``.
    prefix : str
        Relative to the datastore's root; may be empty.
    older : str, optional
        Another prefix that is read too, after the first, and never written.

    Example
    -------
    ``Objects(storage_of("s3"), "mf.deepspeed/Train/7/train").keys(["out"]) == ["out/0/model.bin", "out/1/model.bin"]``
    """

    def __init__(self, storage: Any, prefix: str, older: str | None = None) -> None:
        self._storage = storage
        self._prefixes = [text.strip("/") for text in (prefix, older) if text is not None]

    def url(self, key: str = "") -> str:
        """Where an object goes, or is sought first; the whole location."""
        return str(self._storage.full_uri(_joined(self._prefixes[0], _checked(key) if key else "")))

    def put(self, key: str, content: bytes | str, overwrite: bool = False) -> None:
        """Stores text (as UTF-8) or bytes. One that is there already stays unless ``overwrite``.

        Raises
        ------
        BadKey
        """
        self._save(key, io.BytesIO(content.encode() if isinstance(content, str) else content), overwrite)

    def put_file(self, key: str, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Stores a file, which is not held in memory. Raises as ``put``, and OSError for the file."""
        with MappedFile(os.fspath(path), "rb") as content:
            self._save(key, content, overwrite)

    def get(self, key: str) -> bytes:
        """The content of an object.

        Raises
        ------
        ObjectNotFound, BadKey
        """
        content = io.BytesIO()
        self._load(key, content)
        return content.getvalue()

    def get_file(self, key: str, path: str | os.PathLike[str]) -> None:
        """Writes an object into a file, whose folders are made. Raises as ``get``."""
        folder, name = os.path.split(os.path.abspath(path))
        os.makedirs(folder, exist_ok=True)
        part = os.path.join(folder, f".{name}.{os.getpid()}.part")
        try:
            with open(part, "wb") as content:
                self._load(key, content)
            os.replace(part, path)
        finally:
            if os.path.exists(part):
                os.remove(part)

    def entries(self, folders: Sequence[str] = ("",)) -> list[Entry]:
        """What is in these folders, one level deep, in the order of keys. Nothing where there is no such folder."""
        found: dict[str, Entry] = {}
        for prefix in self._prefixes:
            places = [_joined(prefix, _checked(folder) if folder.strip("/") else "") for folder in folders]
            for place in self._storage.list_content(places):
                if place.is_file and place.path.endswith("/"):
                    continue  # an empty object that stands for the folder itself, as PyArrow and consoles leave them
                key = place.path.rstrip("/")
                key = key.removeprefix(prefix + "/") if prefix else key
                # Object stores take any text for a key; one that is no path must not become one on this disk.
                if key and key == _tidy(key) and key not in found:
                    found[key] = Entry(key, bool(place.is_file))
        return [found[key] for key in sorted(found)]

    def keys(self, folders: Sequence[str] = ("",)) -> list[str]:
        """Every object in these folders and in those below, in order."""
        objects: set[str] = set()
        seen: set[str] = set()
        waiting = list(folders)
        while waiting:
            seen.update(waiting)
            found = self.entries(waiting)
            objects.update(entry.key for entry in found if entry.is_object)
            waiting = [entry.key for entry in found if not entry.is_object and entry.key not in seen]
        return sorted(objects)

    def _save(self, key: str, content: io.BytesIO | MappedFile, overwrite: bool) -> None:
        path = _joined(self._prefixes[0], _checked(key))
        self._storage.save_bytes(iter([(path, content)]), overwrite=overwrite, len_hint=1)

    def _load(self, key: str, into: IO[bytes]) -> None:
        for prefix in self._prefixes:
            with self._storage.load_bytes([_joined(prefix, _checked(key))]) as loaded:
                for _, path, _ in loaded:
                    if path is not None and os.path.isfile(path):
                        with open(path, "rb") as content:
                            shutil.copyfileobj(content, into, 1 << 20)
                        return
        raise ObjectNotFound(self.url(key))


def storage_of(kind: str, root: str | None = None) -> Any:
    """One of Metaflow's datastores, as Metaflow is configured for it.

    Parameters
    ----------
    kind : str
        "local", "s3", "azure" or "gs".
    root : str, optional
        Instead of the configured one.

    Raises
    ------
    GangException
        Metaflow is not configured for it, or what it needs is not installed.
    """
    kinds = storages()
    if kind not in kinds:
        raise GangException(f"Metaflow has no datastore {kind!r}: it has {', '.join(sorted(kinds))}.")
    root = root or configured_root(kinds[kind])
    if not root:
        raise GangException(
            f"Metaflow is not configured for the datastore {kind!r}: set METAFLOW_DATASTORE_SYSROOT_{kind.upper()}, or "
            "run 'metaflow configure'."
        )
    try:
        return kinds[kind](root)
    except MetaflowException as error:
        # Metaflow says some of this in the headline alone, which a traceback does not show.
        raise ToolMissing(f"The datastore {kind!r} cannot be used here: {str(error) or error.headline}.") from None


def _tidy(key: str) -> str:
    """A key as a path without empty pieces; "" where it leads out."""
    pieces = [piece for piece in key.split("/") if piece not in ("", ".")]
    return "" if ".." in pieces else "/".join(pieces)


def _checked(key: str) -> str:
    tidy = _tidy(key)
    if not tidy:
        raise BadKey(f"The key {key!r} names no object below its place in the datastore: leave out '..'.")
    return tidy


def _joined(prefix: str, key: str) -> str:
    return "/".join(piece for piece in (prefix, key) if piece)


def text_of(content: bytes) -> str | None:
    """The content as text; None where it is no UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None

"""Folders of results, copied into the flow's datastore."""

from __future__ import annotations

import io
import mmap
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ..metaflow_compat.datastores import storage_of_flow

# Small files go up together, which datastores do in parallel; a large one goes alone, since some datastores first copy
# to the local disk what goes together. Bytes, bytes, files.
_SMALL_FILE = 8 << 20
_BATCH_BYTES = 64 << 20
_BATCH_FILES = 200
# The last of these are how Python shows bytes that are no UTF-8.
_LOST = re.compile("[\x00-\x1f\x7f?\udc80-\udcff]")


class BadFolder(ValueError):
    """What was given as a folder of results, or as its place in the datastore, is none."""


@dataclass(frozen=True)
class _File:
    key: str
    path: str
    size: int


def results_prefix(
    suffix: str, flow_name: str, run_id: str, step_name: str, task_id: str | None = None, attempt: int | None = None
) -> str:
    """Where the results of a step's gang go, relative to the datastore's root.

    Parameters
    ----------
    suffix : str
        The launcher's own, e.g. "mf.torchrun".
    task_id : str, optional
        Control's task, the same on every node, which keeps the gangs of a foreach apart; the older packages had none.
    attempt : int, optional
        Keeps a retry apart from what it retries.

    Example
    -------
    ``results_prefix("mf.torchrun", "Train", "7", "train") == "mf.torchrun/Train/7/train"``
    """
    pieces = [suffix, flow_name, run_id, step_name, task_id, attempt]
    return "/".join(_piece(str(piece)) for piece in pieces if piece is not None)


def cloud_folder(local_dir: str | os.PathLike[str], wanted: str | None = None) -> str:
    """Name of the results' folder in the datastore: ``wanted``, or the local folder's path without what leads to it.

    Raises
    ------
    BadFolder
        ``wanted`` leads out of the place for results.

    Example
    -------
    ``cloud_folder("/tmp/out") == "tmp/out"``; ``cloud_folder("../out") == "out"``
    """
    if wanted is None:
        pieces = os.path.normpath(os.fspath(local_dir)).split("/")
        return "/".join(_readable(piece) for piece in pieces if piece not in ("", ".", ".."))
    pieces = [piece for piece in wanted.split("/") if piece not in ("", ".")]
    if ".." in pieces:
        raise BadFolder(f"The folder for results {wanted!r} leads out of its place in the datastore: leave out '..'.")
    return "/".join(_readable(piece) for piece in pieces)


def push_folder(
    flow_datastore: Any,
    local_dir: str | os.PathLike[str],
    prefix: str,
    tell: Callable[[str], None] = lambda sentence: None,
) -> str | None:
    """Uploads every file below a folder. Files there already are overwritten; none is held in memory whole.

    Links are followed; what a link leads back into, and what is no file (sockets, pipes), is left out and reported.
    Empty folders leave no trace, since object stores have none. What a datastore would lose of a name is spelled
    ``%XX``.

    Parameters
    ----------
    flow_datastore : metaflow.datastore.FlowDataStore
        The flow's.
    local_dir : path
        The folder.
    prefix : str
        Where to, relative to the datastore's root, e.g. results_prefix(...) + "/out/0".
    tell : callable, optional
        Gets a sentence for the user for each thing that did not go as they may expect.

    Returns
    -------
    str or None
        The whole location in the datastore; None where there is no such folder, as on a node that saved nothing.

    Raises
    ------
    BadFolder
        ``local_dir`` is a file, or two names in it cannot be told apart in the datastore.

    Example
    -------
    ``push_folder(flow_datastore, "out", "mf.torchrun/Train/7/train/out/0") == "s3://bucket/.../out/0"``
    """
    folder = os.fspath(local_dir)
    if not os.path.lexists(folder):
        tell(f"There is no folder {folder!r} on this node: nothing was pushed to the datastore from here.")
        return None
    if not os.path.isdir(folder):
        raise BadFolder(f"{folder!r} is no folder: results are pushed to the datastore by the folder.")
    storage = storage_of_flow(flow_datastore)
    if not _upload(storage, _files_below(folder, storage.path_join(prefix), (), tell), tell):
        tell(f"There is no file in the folder {folder!r} on this node: nothing was pushed to the datastore from here.")
    return str(storage.full_uri(prefix))


def push_files(
    flow_datastore: Any,
    paths: Mapping[str, str],
    prefix: str,
    tell: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Uploads single files, as :func:`push_folder` does those of a folder.

    Parameters
    ----------
    paths : mapping
        By key below ``prefix``, see :func:`readable_path`: the file.
    """
    storage = storage_of_flow(flow_datastore)
    base = storage.path_join(prefix)
    _upload(storage, (_File(f"{base}/{key}", path, os.path.getsize(path)) for key, path in paths.items()), tell)


def _upload(storage: Any, files: Iterator[_File], tell: Callable[[str], None]) -> int:
    """How many files were uploaded. Raises :class:`BadFolder` where two have one key."""
    keys: set[str] = set()
    for batch in _batches(files):
        for file in batch:
            if file.key in keys:
                raise BadFolder(
                    f"Two files would have the same name in the datastore, {file.key!r}: rename {file.path!r}."
                )
            keys.add(file.key)
        storage.save_bytes(_opened(batch, tell), overwrite=True, len_hint=len(batch))
    return len(keys)


def _files_below(
    folder: str, key: str, above: tuple[tuple[int, int], ...], tell: Callable[[str], None]
) -> Iterator[_File]:
    """The files below a folder, in the order of their names; ``above`` has the identities of the folders on the way."""
    found = os.stat(folder)
    here = (found.st_dev, found.st_ino)
    if here in above:
        tell(f"{folder!r} leads back to a folder that it is in: it was not pushed to the datastore.")
        return
    for name in sorted(os.listdir(folder)):
        path, file_key = os.path.join(folder, name), f"{key}/{_readable(name)}"
        try:
            found = os.stat(path)
        except OSError as error:
            tell(f"{path!r} was not pushed to the datastore: {error.strerror}.")
            continue
        if stat.S_ISDIR(found.st_mode):
            yield from _files_below(path, file_key, (*above, here), tell)
        elif stat.S_ISREG(found.st_mode):
            yield _File(file_key, path, found.st_size)
        else:
            tell(f"{path!r} is no file (a socket, a pipe or a device): it was not pushed to the datastore.")


def _batches(files: Iterator[_File]) -> Iterator[list[_File]]:
    """Files that go up in one call: a large one alone, small ones together."""
    batch: list[_File] = []
    size = 0
    for file in files:
        if file.size > _SMALL_FILE:
            yield [file]
            continue
        if batch and (len(batch) == _BATCH_FILES or size + file.size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size
    if batch:
        yield batch


def _opened(batch: list[_File], tell: Callable[[str], None]) -> Iterator[tuple[str, io.RawIOBase]]:
    """Each file, open while the datastore reads it."""
    for file in batch:
        try:
            content = MappedFile(file.path, "rb")
        except FileNotFoundError:
            tell(f"{file.path!r} was not pushed to the datastore: it was removed meanwhile.")
            continue
        with content:
            yield file.key, content


class MappedFile(io.FileIO):
    """A file that, asked for everything at once, answers with its pages instead of a copy.

    S3 is fed piece by piece, but the other datastores ask for a file's whole content and write it to a file: a
    checkpoint of many gigabytes would have to fit into memory.
    """

    def read(self, size: int | None = -1, /) -> Any:
        rest = os.fstat(self.fileno()).st_size - self.tell()
        if self.tell() or rest <= _SMALL_FILE or (size is not None and size >= 0):
            return super().read(-1 if size is None else size)
        try:
            pages = memoryview(mmap.mmap(self.fileno(), rest, access=mmap.ACCESS_READ))
        except OSError:
            # Some network file systems cannot map.
            return super().read()
        self.seek(0, os.SEEK_END)
        return pages


def _piece(text: str) -> str:
    """One part of a key, which cannot be taken for two, for none, or for the folder above."""
    return "%2E" * len(text) if text in (".", "..") else quote(text, safe=" +,:;=@&()'!$~")


def readable_path(path: str) -> str:
    """A relative path as a key that every datastore takes; see :func:`push_folder`."""
    return "/".join(_readable(piece) for piece in path.split("/"))


def _readable(name: str) -> str:
    """A name of a file as every datastore takes it; ``%XX`` spells a byte out that one of them would lose.

    These are bytes that are no UTF-8, control characters, and the question mark: Metaflow's S3 client reads keys as
    URLs, so it stores "a?1" and "a?2" both as "a".
    """
    return _LOST.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", name)

"""A folder that a training writes, e.g. its checkpoints, kept in a datastore as one archive for each node."""

from __future__ import annotations

import os
import re
import tarfile
import tempfile
from collections.abc import Callable
from functools import cached_property
from typing import Any

from ..logs import say
from ..metaflow_compat.environment import NODE_INDEX
from .objects import ObjectNotFound, Objects
from .results import BadFolder, cloud_folder

# Checkpoints hardly get smaller; the higher levels only take longer.
_COMPRESSION = 1


class FolderSync:
    """Pushes a folder as ``<folder>-node-<i>.tar.gz``, and fetches what was pushed.

    Its ``on_epoch_end`` has the signature of a Trainer callback of Hugging Face.

    Parameters
    ----------
    open_objects : callable
        Gives the place for the archives; called when it is needed first.
    folder : path
        The folder. The archive's key is its path without what leads to it.
    local_rank : int, optional
        Which of its node's ranks this process is: rank 0 pushes. Otherwise LOCAL_RANK says so.
    node_index : int, optional
        Which node this is. Otherwise MF_PARALLEL_NODE_INDEX says so.
    push_from_all_nodes : bool
        Every node pushes its own folder, instead of node 0 alone.
    """

    def __init__(
        self,
        open_objects: Callable[[], Objects],
        folder: str | os.PathLike[str] = "training_outputs",
        local_rank: int | None = None,
        node_index: int | None = None,
        push_from_all_nodes: bool = False,
    ) -> None:
        self._open_objects = open_objects
        self.folder = os.path.normpath(os.fspath(folder))
        if not cloud_folder(self.folder):
            raise BadFolder(f"The folder {self.folder!r} has no name of its own to be pushed under: give one that has.")
        self.local_rank = _number("LOCAL_RANK") if local_rank is None else local_rank
        self.node_index = _number(NODE_INDEX) if node_index is None else node_index
        self.push_from_all_nodes = push_from_all_nodes
        self._said: set[str] = set()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pushes the folder where this process is the one to do so.

        What goes wrong is said and does not end the training: the next epoch's end tries again. That there is nothing
        to push, or that it is unknown who this process is, so that it may not push, is said once.
        """
        unknown = self._unknown()
        if unknown:
            self._say_once(unknown)
        if self.local_rank != 0 or not (self.push_from_all_nodes or self.node_index == 0):
            return
        try:
            location = self.push()
        except Exception as error:
            say(f"The folder {self.folder!r} was not pushed to the datastore: {error or type(error).__name__}")
        else:
            if location is not None:
                say(f"Pushed the folder {self.folder!r} to {location}")
                return
            self._say_once(f"The folder {self.folder!r} is not pushed: there is none in {os.getcwd()} yet.")

    def _unknown(self) -> str:
        """Why this process, which might be the one to push, does not; "" where it is known whether it is."""
        missing = []
        if self.local_rank is None:
            missing.append("which rank of its node it is (LOCAL_RANK, or local_rank=)")
        if self.node_index is None and not self.push_from_all_nodes:
            missing.append("which node this is (MF_PARALLEL_NODE_INDEX, or node_index=)")
        if not missing or self.local_rank or (self.node_index and not self.push_from_all_nodes):
            return ""
        return f"The folder {self.folder!r} is not pushed by this process, which is not told {' and '.join(missing)}."

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            say(text)

    def push(self) -> str | None:
        """Pushes the folder now, in place of what was pushed before.

        Returns
        -------
        str or None
            Where it is; None where there is no such folder yet.
        """
        if not os.path.isdir(self.folder):
            return None
        key = self._key(self.node_index or 0)
        # Beside the folder: what has room for that has room for this.
        beside = os.path.dirname(os.path.abspath(self.folder))
        with tempfile.NamedTemporaryFile(dir=beside, prefix=".push-", suffix=".tar.gz") as packed:
            with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=_COMPRESSION) as archive:
                archive.add(self.folder, arcname=os.path.basename(self.folder))
            packed.flush()
            self._objects.put_file(key, packed.name, overwrite=True)
        return self._objects.url(key)

    def download(self, all_nodes: bool = False) -> None:
        """Fetches the folder that this node pushed (node 0, where there is no node), to where it was pushed from.

        What would land outside is left out and said.

        Parameters
        ----------
        all_nodes : bool
            Fetch the folder of every node that pushed, each into ``<folder>-node-<i>/``.

        Raises
        ------
        ObjectNotFound
            Nothing was pushed there.
        """
        if not all_nodes:
            self._fetch(self.node_index or 0, os.path.dirname(self.folder) or ".")
            return
        pattern = re.compile(re.escape(cloud_folder(self.folder)) + r"-node-(0|[1-9]\d*)\.tar\.gz")
        found = [pattern.fullmatch(entry.key) for entry in self._objects.entries([os.path.dirname(self._key(0))])]
        nodes = sorted(int(match[1]) for match in found if match)
        if not nodes:
            raise ObjectNotFound(self._objects.url(self._key(0)))
        for node in nodes:
            self._fetch(node, f"{self.folder}-node-{node}")

    @cached_property
    def _objects(self) -> Objects:
        return self._open_objects()

    def _key(self, node: int) -> str:
        return f"{cloud_folder(self.folder)}-node-{node}.tar.gz"

    def _fetch(self, node: int, into: str) -> None:
        os.makedirs(into, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into, prefix=".fetch-") as folder:
            packed = os.path.join(folder, "folder.tar.gz")
            self._objects.get_file(self._key(node), packed)
            unpack(packed, into)


def unpack(packed: str, into: str) -> None:
    """Unpacks an archive into a folder, and nothing outside of it: what would be is left out and said."""
    with tarfile.open(packed, "r:gz") as archive:
        for member in archive:
            try:
                # Not all of the Pythons 3.10 and 3.11 have the filter.
                if hasattr(tarfile, "data_filter"):
                    archive.extract(member, into, filter="data")
                else:
                    archive.extract(plain(member), into, set_attrs=False)
            except (tarfile.TarError, ValueError) as error:
                say(f"{member.name!r} was left out of what was fetched from the datastore: {error}")


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The member of an archive, where it is a file or a folder inside of the one that it is unpacked into.

    Raises
    ------
    ValueError
        It is something else.
    """
    if not (member.isreg() or member.isdir()):
        raise ValueError("it is neither a file nor a folder")
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise ValueError("it leads out of the folder")
    return member


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else None

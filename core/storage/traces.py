"""Traces of torch's profiler that the ranks of a node have written, stored in the flow's datastore within limits."""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..metaflow_compat.datastores import storage_of_flow
from ..settings.table import BY_NAME
from .results import push_files, readable_path, results_prefix

ENDINGS = (".pt.trace.json", ".pt.trace.json.gz")
"""Those that torch's ``tensorboard_trace_handler`` gives its files."""

MOST_FILES = 32
"""Stored of one node: of eight ranks four each. The names travel to node 0, for the card."""

MOST_NAME = 200
"""Characters of a trace's path below the folder; torch's own names have some 60."""

_HEAD = 64 * 1024
"""Bytes at the beginning of a trace that say which rank wrote it: before them are the node's GPUs at most."""

_RANK = re.compile(rb'"distributedInfo":\s*\{[^{}]*?"rank":\s*(\d{1,9})\b')
_RANK_IN_NAME = re.compile(r"rank[-_.]?(\d{1,9})(?!\d)", re.IGNORECASE)

_MEGABYTE = 1 << 20
_SETTING = BY_NAME["trace_megabytes"]


def traces_prefix(flow_name: str, run_id: str, step_name: str, control_task: str, attempt: int) -> str:
    """Where the traces of one attempt of a gang are, in a folder for each node, relative to the datastore's root."""
    return results_prefix("mf.gang.traces", flow_name, run_id, step_name, control_task, attempt)


@dataclass(frozen=True)
class Trace:
    """One file: its key below the node's folder in the datastore, where it is here, and its bytes."""

    name: str
    path: str
    size: int
    written: float

    def as_data(self) -> dict[str, Any]:
        """For the card and the metadata."""
        return {"name": self.name, "rank": rank_of(self.path), "bytes": self.size}


class NodeTraces:
    """The traces of one node.

    Parameters
    ----------
    flow_datastore : FlowDataStore
    prefix : str
        Where to, relative to the datastore's root; see :func:`traces_prefix`.
    folder : str
        Where the ranks of this node write them.
    tell : callable
        Takes a sentence for the user.
    """

    def __init__(self, flow_datastore: Any, prefix: str, folder: str, tell: Callable[[str], None]) -> None:
        self._flow_datastore, self._prefix, self._folder, self._tell = flow_datastore, prefix, folder, tell
        self._stored: dict[str, Any] | None = None

    def look(self) -> dict[str, Any] | None:
        """What is to be stored: ``where`` (a location), ``files`` (``name``, ``rank`` or None, and ``bytes``), and
        ``left_out``, a sentence or "". None where there is no trace.
        """
        chosen, left_out = self._choose()
        return self._record(chosen, left_out) if chosen or left_out else None

    def store(self) -> dict[str, Any] | None:
        """Store them; once, however often it is called. Returns what :meth:`look` does, of those that are stored.

        What a datastore raises is only logged: the step's own result matters more than its traces.
        """
        if self._stored is not None:
            return self._stored
        chosen, left_out = self._choose()
        if not chosen and not left_out:
            return None
        try:
            if chosen:
                files = {trace.name: trace.path for trace in chosen}
                push_files(self._flow_datastore, files, self._prefix, self._tell)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0][:200]
            why = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
            chosen, left_out = [], f"Not stored: {_count(len(chosen))} of torch's profiler. {why}"
        found = self._stored = self._record(chosen, left_out)
        if chosen:
            self._tell(f"Stored {_count(len(chosen))} of torch's profiler in {found['where']}")
        if left_out:
            self._tell(left_out)
        return found

    def _record(self, chosen: list[Trace], left_out: str) -> dict[str, Any]:
        where = str(storage_of_flow(self._flow_datastore).full_uri(self._prefix))
        return {"where": where, "files": [trace.as_data() for trace in chosen], "left_out": left_out}

    def _choose(self) -> tuple[list[Trace], str]:
        """The newest traces that the limits allow, by name, and a sentence about the others."""
        found = sorted(traces_below(self._folder), key=lambda trace: (-trace.written, trace.name))
        if not found:
            return [], ""
        most, size = _SETTING.read() * _MEGABYTE, 0
        chosen: list[Trace] = []
        left: list[Trace] = []
        for trace in found:
            if len(chosen) == MOST_FILES or size + trace.size > most or len(trace.name) > MOST_NAME:
                left.append(trace)
            else:
                chosen.append(trace)
                size += trace.size
        sentence = ""
        if left:
            megabytes = sum(trace.size for trace in left) / _MEGABYTE
            sentence = (
                f"Not stored: {_count(len(left))} of torch's profiler, {megabytes:,.1f} MiB. A node stores its newest "
                f"{MOST_FILES} with names of at most {MOST_NAME} characters, up to {most / _MEGABYTE:g} MiB in all "
                f"({_SETTING.variable})."
            )
        return sorted(chosen, key=lambda trace: trace.name), sentence


def traces_below(folder: str) -> Iterator[Trace]:
    """The traces in a folder and in those below; links are not followed."""
    for here, folders, names in os.walk(folder):
        folders.sort()
        for name in names:
            if name.endswith(ENDINGS):
                path = os.path.join(here, name)
                try:
                    found = os.lstat(path)
                except OSError:  # it is gone
                    continue
                if stat.S_ISREG(found.st_mode) and found.st_size:
                    yield Trace(readable_path(os.path.relpath(path, folder)), path, found.st_size, found.st_mtime)


def rank_of(path: str) -> int | None:
    """The rank that wrote a trace, as the trace itself says, or else its name ("rank3"); None where neither does."""
    try:
        if path.endswith(".gz"):
            import gzip  # few traces are packed

            with gzip.open(path) as packed:
                head = packed.read(_HEAD)
        else:
            with open(path, "rb") as file:
                head = file.read(_HEAD)
    except (OSError, EOFError, zlib.error):  # gone, cut off since its rank was killed while it wrote, or damaged
        head = b""
    said = _RANK.search(head) or _RANK_IN_NAME.search(os.path.basename(path))
    return int(said[1]) if said else None


def _count(number: int) -> str:
    return f"{number} trace" if number == 1 else f"{number} traces"

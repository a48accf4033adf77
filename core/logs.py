"""What the user reads: lines of our own, and the logs of the other nodes of a local gang.

Run as a program (``python logs.py SPEC``) it stores those logs when the task that should have done it is dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from .exceptions import MetaflowChanged
from .metaflow_compat.datastores import datastore_of_task, open_flow_datastore
from .metaflow_compat.environment import captured_streams
from .metaflow_compat.task_logs import around_the_line, save_logs_of_run, save_own_logs

_CAPTURE_S = 1.0
_TAIL_BYTES = 1 << 16

LOG_BYTES = 64 << 20
"""How much is stored of each stream of another local node where no setting (METAFLOW_GANG_LOG_MEGABYTES) says so."""

_PIECE_BYTES = 1 << 20

_LEFT_OUT = b" [gang] ... %d bytes are left out of this log (METAFLOW_GANG_LOG_MEGABYTES); the console has shown them\n"


def say(text: str) -> None:
    """One line for the user, in this task's log."""
    sys.stderr.write(f"[gang] {text}\n")
    sys.stderr.flush()


def say_together(lines: Sequence[str]) -> None:
    """Lines for the user, in this task's log, with none of another process between them."""
    say("\n[gang] ".join(lines))


def say_and_store(text: str, task_datastore: Any) -> None:
    """Lines for the user that are in the log that a backend stores for this task, already when this returns. Where no
    backend stores one, nothing is said: there Metaflow's own words are read at once.

    What Metaflow itself writes about a failed step comes after it has stored the task's state, and is stored later
    still: that takes seconds, in which a JobSet of which another job has failed ends this one by SIGKILL.

    Parameters
    ----------
    text : str
    task_datastore : TaskDataStore
        That of the running task.
    """
    paths = captured_streams()
    if not paths:
        return
    say(text)
    # The file is written by a process that reads our stderr; that it has come so far raises no event.
    last, deadline = text.strip().splitlines()[-1].encode(), time.monotonic() + _CAPTURE_S
    # Whatever a datastore raises: the failure that is being reported is the one to end with.
    with contextlib.suppress(Exception):
        while last not in Path(paths["stderr"]).read_bytes()[-_TAIL_BYTES:] and time.monotonic() < deadline:
            time.sleep(0.01)
        save_own_logs(task_datastore, {stream: Path(path) for stream, path in paths.items()})


def to_mflog(path: str, limit: int = LOG_BYTES) -> FileIO:
    """A log of the guard (``<UTC time> <line>``) as Metaflow stores one, byte for byte but for the line's prefix: a
    file without a name, in the log's folder.

    Of a log of more than ``limit`` bytes the middle is left out, and a line says so.
    """
    stored = tempfile.TemporaryFile(dir=os.path.dirname(path), buffering=0)  # noqa: SIM115 - for the caller to read
    writer = _Writer(stored)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        writer.copy(file, size if size <= limit else limit // 2)
        if size > limit:
            start = file.tell()
            file.seek(max(start, size - limit // 2))
            file.readline()  # the rest of a line
            writer.write([writer.latest + _LEFT_OUT % (file.tell() - start)])
            writer.copy(file, size)
    stored.seek(0)
    return stored


class _Writer:
    """Writes lines of the guard's into ``stored``, as Metaflow's; ``latest`` is the latest time that one had."""

    def __init__(self, stored: Any) -> None:
        self.latest = b""
        self._stored = stored
        self._number = 0
        self._before, self._between, self._after = around_the_line()

    def copy(self, file: BinaryIO, most: int) -> None:
        """The whole lines of the next ``most`` bytes of ``file``."""
        done = 0
        while done < most and (lines := file.readlines(min(_PIECE_BYTES, most - done))):
            self.write(lines)
            done += sum(map(len, lines))

    def write(self, lines: list[bytes]) -> None:
        before, between, after = self._before, self._between, self._after
        latest, number, ready = self.latest, self._number, []
        for line in lines:
            stamp, space, text = line.partition(b" ")
            if not space:
                break  # a guard that was killed left half a stamp
            if stamp > latest:
                latest = stamp
            # Metaflow's reader sorts by time, then by this id, which would else be a random one: the lines of one
            # moment would lose their order.
            ready.append(b"%b%b%b%012d%b%b" % (before, latest, between, number, after, text))
            number += 1
        if ready and not ready[-1].endswith(b"\n"):
            ready.append(b"\n")
        self.latest, self._number = latest, number
        view = memoryview(b"".join(ready))
        while view:
            view = view[self._stored.write(view) :]


def save_node_logs(
    flow_datastore: Any,
    run_id: str,
    step: str,
    attempt: int,
    logs: Mapping[str, Mapping[str, str]],
    task_ids: Mapping[str, str],
    limit: int = LOG_BYTES,
) -> None:
    """Store each node's stdout and stderr as the log of its own task, where ``Task(...).stdout`` finds it.

    Parameters
    ----------
    logs : mapping of node index to mapping of stream name to path
    task_ids : mapping of node index to task id
    limit : int
        Bytes of each stream that are stored.
    """
    for node, streams in logs.items():
        datastore = datastore_of_task(flow_datastore, run_id, step, task_ids[node], attempt)
        with contextlib.ExitStack() as stack:
            opened = {name: stack.enter_context(to_mflog(path, limit)) for name, path in streams.items()}
            save_logs_of_run(datastore, opened)


def main(spec_path: str) -> None:
    """Store the logs that the specification at ``spec_path`` (JSON, see :mod:`core.rendezvous.local_nodes`) names."""
    with open(spec_path, encoding="utf-8") as file:
        spec = json.load(file)
    where = (spec["run"], spec["step"], spec["attempt"])
    try:
        datastore = open_flow_datastore(spec["flow"], spec["datastore"], spec["root"])
        save_node_logs(datastore, *where, spec["logs"], spec["task_ids"], spec["limit"])
    except MetaflowChanged as error:
        raise SystemExit(f"[gang] {error}") from None


if __name__ == "__main__":
    main(sys.argv[1])

"""What the user reads: lines of our own, and the logs of the other nodes of a local gang.

Run as a program (``python logs.py SPEC``) it stores those logs when the task that should have done it is dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

_CAPTURE_S = 1.0
_TAIL_BYTES = 1 << 16


def say(text: str) -> None:
    """One line for the user, in this task's log."""
    sys.stderr.write(f"[gang] {text}\n")
    sys.stderr.flush()


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
    paths = {stream: os.environ.get(f"MFLOG_{stream.upper()}", "") for stream in ("stdout", "stderr")}
    if not all(paths.values()):
        return
    say(text)
    from metaflow.mflog import TASK_LOG_SOURCE

    # The file is written by a process that reads our stderr; that it has come so far raises no event.
    last, deadline = text.strip().splitlines()[-1].encode(), time.monotonic() + _CAPTURE_S
    # Whatever a datastore raises: the failure that is being told is the one to end with.
    with contextlib.suppress(Exception):
        while last not in Path(paths["stderr"]).read_bytes()[-_TAIL_BYTES:] and time.monotonic() < deadline:
            time.sleep(0.01)
        task_datastore.save_logs(TASK_LOG_SOURCE, {stream: Path(path) for stream, path in paths.items()})


def to_mflog(path: str) -> BytesIO:
    """A log of the guard (``<UTC time> <line>``) as Metaflow stores one, byte for byte but for the line's prefix."""
    from metaflow.mflog import RUNTIME_LOG_SOURCE
    from metaflow.mflog.mflog import decorate

    stored = BytesIO()
    latest = datetime.min
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            stamp, space, text = line.partition(b" ")
            if not space:
                break  # a guard that was killed left half a stamp
            latest = max(latest, datetime.fromisoformat(stamp.decode()))
            # Metaflow's reader sorts by time, then by this id, which would else be a random one: the lines of one
            # moment would lose their order.
            order = b"%012d" % number
            stored.write(decorate(RUNTIME_LOG_SOURCE, text.removesuffix(b"\n") + b"\n", now=latest, lineid=order))
    stored.seek(0)
    return stored


def save_node_logs(
    flow_datastore: Any,
    run_id: str,
    step: str,
    attempt: int,
    logs: Mapping[str, Mapping[str, str]],
    task_ids: Mapping[str, str],
) -> None:
    """Store each node's stdout and stderr as the log of its own task, where ``Task(...).stdout`` finds it.

    Parameters
    ----------
    logs : mapping of node index to mapping of stream name to path
    task_ids : mapping of node index to task id
    """
    from metaflow.mflog import RUNTIME_LOG_SOURCE

    for node, streams in logs.items():
        datastore = flow_datastore.get_task_datastore(
            run_id, step, task_ids[node], attempt=attempt, mode="w", allow_not_done=True
        )
        datastore.save_logs(RUNTIME_LOG_SOURCE, {name: to_mflog(path) for name, path in streams.items()})


def main(spec_path: str) -> None:
    """Store the logs that the specification at ``spec_path`` (JSON, see :mod:`.local`) names."""
    from metaflow.datastore import FlowDataStore
    from metaflow.plugins import DATASTORES

    with open(spec_path, encoding="utf-8") as file:
        spec = json.load(file)
    storage = next(store for store in DATASTORES if spec["datastore"] == store.TYPE)
    datastore = FlowDataStore(spec["flow"], None, storage_impl=storage, ds_root=spec["root"])
    save_node_logs(datastore, spec["run"], spec["step"], spec["attempt"], spec["logs"], spec["task_ids"])


if __name__ == "__main__":
    main(sys.argv[1])

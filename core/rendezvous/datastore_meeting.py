"""The meeting place of remote nodes: an object in the flow's datastore, by which they find node 0.

Node 0 publishes what the others need to join, and they poll for it. The key contains the attempt, so that a retry never
reads what an earlier attempt left. When the gang is complete, and at its end, node 0 overwrites the object with a
tombstone that names the first failure. A node that ends before it could join writes two reports beside it, its own one
and one that all such nodes overwrite: node 0 looks for the latter alone, and for the others only once it has changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from ..guard.failure_record import Failure
from ..metaflow_compat.datastores import storage_of_flow

_MAGIC = b"mf.gang"
_OPEN, _CLOSED, _FAILED = b"open", b"closed", b"failed"
_LONGEST_HEADER = 200
# Seconds between two reads, doubling from the first to the last; and between two calls of ``stop``.
_FIRST_PAUSE, _LAST_PAUSE, _NOTICE = 0.05, 1.0, 0.05
# Errors of the datastore in a row after which a node gives up: some four seconds.
_PATIENCE = 8


class MeetingFailed(Exception):
    """The nodes could not meet; the message is a sentence."""


class MeetingClosed(MeetingFailed):
    """The gang was complete, or had ended, before this node read the meeting place."""


class MeetingTimeout(MeetingFailed):
    """Node 0 had published nothing when the time was over."""


class MeetingStopped(MeetingFailed):
    """The caller's ``stop`` has ended the wait."""


class DatastoreMeeting:
    """The meeting place of one gang in one attempt.

    Parameters
    ----------
    flow_datastore : metaflow.datastore.FlowDataStore
        The flow's; every node needs to reach it.
    flow_name, run_id, step_name, control_task : str
        Which gang.
    attempt : int
        Which attempt of it, from 0.

    Example
    -------
    On control ``meeting.publish(address); ...; meeting.close()``, elsewhere ``address = meeting.poll(600)``
    """

    def __init__(
        self, flow_datastore: Any, flow_name: str, run_id: str, step_name: str, control_task: str, attempt: int
    ) -> None:
        self._storage = storage_of_flow(flow_datastore)
        self._attempt = attempt
        pieces = (flow_name, run_id, step_name, control_task, str(attempt))
        # A dot is no part of an id that Metaflow makes, but "." and ".." would be folders.
        self.key = "/".join(["mf.gang", *(quote(piece, safe="").replace(".", "%2E") for piece in pieces)])
        self._report_key = f"{self.key}-failed"
        self._last_report = b""

    @property
    def location(self) -> str:
        """Where the object is, for the user to look."""
        return str(self._storage.full_uri(self.key))

    def publish(self, data: bytes) -> None:
        """Publish ``data``; whoever can read the datastore can read it. Raises what the datastore raises."""
        if self._storage.TYPE == "local":
            # Some versions of Metaflow write the file readable for all; one that is there keeps its mode.
            self._storage.save_bytes([(self.key, io.BytesIO())], overwrite=True)
            os.chmod(self.location, 0o600)
        self._save(self.key, _OPEN, data)

    def close(self, failure_report: str = "") -> None:
        """Overwrite what was published, so that nobody joins any more. Raises what the datastore raises.

        Parameters
        ----------
        failure_report : str
            Why the gang has failed, for nodes that come later; "" where it has not.
        """
        self._save(self.key, _CLOSED, failure_report.encode(errors="replace"))

    def report_failure(self, failure: dict[str, Any]) -> None:
        """Report to node 0 that a node has failed and will not join. Raises what the datastore raises.

        Parameters
        ----------
        failure : dict
            A :class:`~.failure_record.Failure` as JSON.
        """
        data = json.dumps(failure).encode()
        self._save(self._key_of(failure["node"]), _FAILED, data)
        self._save(self._report_key, _FAILED, data)  # the last one: who finds it, finds the node's own one

    def has_reported(self, node: int) -> bool:
        """Whether ``node`` has reported that it will not join. Raises what the datastore raises."""
        return self._load(self._key_of(node)) is not None

    def new_failures(self, others: Iterable[int] = ()) -> list[dict[str, Any]]:
        """On node 0: the reports of nodes that will not join, where there are new ones that can be read.

        Parameters
        ----------
        others : iterable of int
            Nodes whose reports are looked for besides the last one. They are given again where another one is new.
        """
        try:
            found = self._load(self._report_key)
            if found is None or found[1] == self._last_report:
                return []
            keys = [self._key_of(node) for node in others]
            present = self._storage.is_file(keys) if keys else []
            reports = [found, *(self._load(key) for key, is_there in zip(keys, present, strict=True) if is_there)]
            texts = dict.fromkeys(report[1] for report in reports if report is not None and report[0] == _FAILED)
            failures = [Failure.from_json(json.loads(text)).to_json() for text in texts]
        except Exception:  # whatever a datastore raises: the next look may find it
            return []
        self._last_report = found[1]
        return failures

    def _key_of(self, node: int) -> str:
        return f"{self._report_key}-{node}"

    def failure_of_gang(self) -> str:
        """On another node: why the gang has failed; "" where it has not failed, or nothing can be read."""
        try:
            found = self._load(self.key)
        except Exception:  # as above
            return ""
        return self._failed_before(found[1]) if found is not None and found[0] == _CLOSED and found[1] else ""

    def _failed_before(self, report: bytes) -> str:
        text = report.decode(errors="replace")
        return f"The gang had failed when this node came. {text}\n(Read from {self.location}.)"

    def poll(self, timeout_s: float, stop: Callable[[], bool] = lambda: False) -> bytes:
        """Wait for what node 0 publishes, and return it.

        Parameters
        ----------
        timeout_s : float
            Seconds to wait; 0 looks once.
        stop : callable, optional
            Called some 20 times a second; True ends the wait.

        Raises
        ------
        MeetingClosed
            The gang is complete or has ended.
        MeetingTimeout
            Nothing was published in time.
        MeetingStopped
            ``stop`` returned True.
        MeetingFailed
            The datastore cannot be read.
        """
        deadline = time.monotonic() + timeout_s
        pause = _FIRST_PAUSE
        errors = 0
        while True:
            try:
                found = self._load(self.key)
                errors = 0
            except Exception as error:
                # Each datastore has errors of its own, and one that passes must not fail the gang.
                errors += 1
                if errors == _PATIENCE or time.monotonic() >= deadline:
                    raise MeetingFailed(
                        f"The meeting place {self.location} cannot be read ({type(error).__name__}: {error}). "
                        "Check that this node may read the flow's datastore."
                    ) from error
                found = None
            if found is not None:
                state, data = found
                if state == _CLOSED and data:
                    raise MeetingClosed(self._failed_before(data))
                if state == _CLOSED:
                    raise MeetingClosed(
                        f"The gang of attempt {self._attempt} accepts no more nodes: this node came too late or was "
                        f"restarted (tombstone at {self.location})."
                    )
                return data
            self._rest(min(pause, deadline - time.monotonic()), stop)
            if time.monotonic() >= deadline:
                raise MeetingTimeout(
                    f"Node 0 has published no address within {timeout_s:g} s at {self.location}. Check that node 0's "
                    "task has started, and that both use the same datastore."
                )
            pause = min(2 * pause, _LAST_PAUSE)

    def _rest(self, seconds: float, stop: Callable[[], bool]) -> None:
        """Sleep until ``seconds`` are over or ``stop`` returns True."""
        end = time.monotonic() + seconds
        while True:
            if stop():
                raise MeetingStopped(f"This node stopped waiting for node 0 at {self.location}.")
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _NOTICE))

    def _save(self, key: str, state: bytes, data: bytes) -> None:
        header = b" ".join([_MAGIC, state, str(len(data)).encode(), hashlib.sha256(state + data).hexdigest().encode()])
        self._storage.save_bytes([(key, io.BytesIO(header + b"\n" + data))], overwrite=True)

    def _load(self, key: str) -> tuple[bytes, bytes] | None:
        """State and data; None where there is no whole object yet."""
        if not self._storage.is_file([key])[0]:
            return None
        with self._storage.load_bytes([key]) as loaded:
            for _, path, _ in loaded:
                if path is not None:
                    with open(path, "rb") as file:
                        return _whole(file.read())
        return None


def _whole(content: bytes) -> tuple[bytes, bytes] | None:
    """State and data of an object; None for one that was read while it was written."""
    header, newline, data = content.partition(b"\n")
    words = header.split(b" ") if newline and len(header) <= _LONGEST_HEADER else []
    if len(words) != 4 or words[0] != _MAGIC or words[1] not in (_OPEN, _CLOSED, _FAILED):
        return None
    state, digest = words[1], hashlib.sha256(words[1] + data).hexdigest().encode()
    return (state, data) if words[2] == str(len(data)).encode() and words[3] == digest else None

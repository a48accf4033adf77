"""Where remote nodes find each other: one object in the flow's datastore.

Control publishes what the others need to join; they poll for it. Its key has the attempt, so that a retry never reads
what an earlier attempt left; when the gang is complete, and at its end, control overwrites it with a tombstone, which
tells the first failure. Beside it a node that ends before it could join leaves word, for which control looks.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from ..guard.failure_record import Failure
from ..metaflow_compat.datastores import storage_of_flow

_MAGIC = b"mf.gang"
_OPEN, _CLOSED, _FAILED = b"open", b"closed", b"failed"
_LONGEST_HEADER = 200
# Seconds between two looks, doubling from the first to the last; and between two looks at ``stop``.
_FIRST_PAUSE, _LAST_PAUSE, _NOTICE = 0.05, 1.0, 0.05
# Errors of the datastore in a row after which it is not weather any more: some four seconds.
_PATIENCE = 8


class MeetingFailed(Exception):
    """The nodes could not meet; the message is a sentence."""


class MeetingClosed(MeetingFailed):
    """The gang had taken its last member, or had ended, before this node came."""


class MeetingTimeout(MeetingFailed):
    """Control had published nothing when the time was over."""


class MeetingStopped(MeetingFailed):
    """The caller wished to wait no longer."""


class DatastoreMeeting:
    """The meeting of one gang in one attempt.

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
        self._word = f"{self.key}-failed"

    @property
    def location(self) -> str:
        """Where the object is, for the user to look."""
        return str(self._storage.full_uri(self.key))

    def publish(self, data: bytes) -> None:
        """Lets the others find ``data``. Whoever can read the datastore can read it. Raises what the datastore does."""
        if self._storage.TYPE == "local":
            # Some versions of Metaflow write the file readable for all; one that is there keeps its mode.
            self._storage.save_bytes([(self.key, io.BytesIO())], overwrite=True)
            os.chmod(self.location, 0o600)
        self._save(self.key, _OPEN, data)

    def close(self, story: str = "") -> None:
        """Overwrites what was published: who comes now is told that it is too late, and the ``story`` of the gang's
        failure where there is one. Raises what the datastore does.
        """
        self._save(self.key, _CLOSED, story.encode(errors="replace"))

    def leave_word(self, failure: dict[str, Any]) -> None:
        """For control: a node has failed, and will not join. ``failure`` is a record of :mod:`.guard.verdict`. Of
        several nodes the last one's stays. Raises what the datastore does.
        """
        self._save(self._word, _FAILED, json.dumps(failure).encode())

    def word(self) -> dict[str, Any] | None:
        """On control: what a node has left that will not join; None where there is nothing, or nothing to be read."""
        try:
            found = self._load(self._word)
            return Failure.from_json(json.loads(found[1])).to_json() if found and found[0] == _FAILED else None
        except Exception:  # whatever a datastore raises: the next look may find it
            return None

    def story(self) -> str:
        """On another node: why the gang has failed meanwhile; "" where it has not, or where nothing can be read."""
        try:
            found = self._load(self.key)
        except Exception:  # as above
            return ""
        return self._failed_before(found[1]) if found is not None and found[0] == _CLOSED and found[1] else ""

    def _failed_before(self, story: bytes) -> str:
        told = story.decode(errors="replace")
        return f"The gang had failed when this node came. {told}\n(Read from {self.location}.)"

    def poll(self, timeout_s: float, stop: Callable[[], bool] = lambda: False) -> bytes:
        """Waits for what control publishes.

        Parameters
        ----------
        timeout_s : float
            Seconds to wait; 0 looks once.
        stop : callable, optional
            Asked some 20 times a second; True ends the wait.

        Raises
        ------
        MeetingClosed
            The gang has closed its doors.
        MeetingTimeout
            Nothing was published in time.
        MeetingStopped
            ``stop`` said so.
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
                # Each datastore has errors of its own, and a passing one must not cost the gang.
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
                        f"The gang of attempt {self._attempt} has closed its doors: this node came too late or was "
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
        """Sleeps, but not past a ``stop``."""
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
        """State and data; None where nothing whole is there yet."""
        if not self._storage.is_file([key])[0]:
            return None
        with self._storage.load_bytes([key]) as loaded:
            for _, path, _ in loaded:
                if path is not None:
                    with open(path, "rb") as file:
                        return _whole(file.read())
        return None


def _whole(content: bytes) -> tuple[bytes, bytes] | None:
    """State and data of an object that was read to its end; None for one that was read while it was written."""
    header, newline, data = content.partition(b"\n")
    words = header.split(b" ") if newline and len(header) <= _LONGEST_HEADER else []
    if len(words) != 4 or words[0] != _MAGIC or words[1] not in (_OPEN, _CLOSED, _FAILED):
        return None
    state, digest = words[1], hashlib.sha256(words[1] + data).hexdigest().encode()
    return (state, data) if words[2] == str(len(data)).encode() and words[3] == digest else None

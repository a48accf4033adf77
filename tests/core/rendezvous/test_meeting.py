"""Nodes that meet through a real local datastore, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from metaflow.datastore.flow_datastore import FlowDataStore
from metaflow.plugins.datastores.local_storage import LocalStorage

from metaflow_extensions.gang.core.guard.failure_record import Failure
from metaflow_extensions.gang.core.rendezvous.datastore_meeting import (
    DatastoreMeeting,
    MeetingClosed,
    MeetingFailed,
    MeetingStopped,
    MeetingTimeout,
)

DEADLINE = 60
PAYLOAD = bytes(range(256)) * 3 + b"\nmf.gang open 0 \n"


def meet(root: Path, attempt: int = 0, **other: str) -> DatastoreMeeting:
    pieces = {"flow_name": "Train", "run_id": "7", "step_name": "train", "control_task": "12", **other}
    store = FlowDataStore("Train", storage_impl=LocalStorage, ds_root=str(root))
    return DatastoreMeeting(store, **pieces, attempt=attempt)


def object_of(meeting: DatastoreMeeting) -> Path:
    return Path(meeting.location)


def test_what_was_published_is_found(tmp_path: Path) -> None:
    control = meet(tmp_path)
    for data in (PAYLOAD, b"", b"x" * (1 << 20)):
        control.publish(data)
        assert meet(tmp_path).poll(0) == data
    assert control.key == "mf.gang/Train/7/train/12/0"
    assert control.location == str(tmp_path / control.key)


WAIT = """
import sys, metaflow
from metaflow.datastore.flow_datastore import FlowDataStore
from metaflow.plugins.datastores.local_storage import LocalStorage
from metaflow_extensions.gang.core.rendezvous.datastore_meeting import DatastoreMeeting
store = FlowDataStore("Train", storage_impl=LocalStorage, ds_root=sys.argv[1])
print("waiting", flush=True)
print(DatastoreMeeting(store, "Train", "7", "train", "12", 0).poll(60).hex())
"""


def test_processes_wait_for_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WAIT, str(tmp_path)]
    members = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for member in members:
        assert member.stdout is not None
        assert member.stdout.readline() == "waiting\n"
    meet(tmp_path).publish(PAYLOAD)
    for member in members:
        assert member.communicate(timeout=DEADLINE)[0] == PAYLOAD.hex() + "\n"
        assert member.returncode == 0


def test_a_closed_gang_takes_nobody(tmp_path: Path) -> None:
    control = meet(tmp_path, attempt=3)
    control.publish(b"secret")
    control.close()
    control.close()
    with pytest.raises(
        MeetingClosed, match=r"The gang of attempt 3 accepts no more nodes: this node came too late or was"
    ):
        meet(tmp_path, attempt=3).poll(DEADLINE)
    assert b"secret" not in object_of(control).read_bytes()


def test_a_gang_closed_before_it_opened(tmp_path: Path) -> None:
    meet(tmp_path).close()
    with pytest.raises(MeetingClosed):
        meet(tmp_path).poll(0)


@pytest.mark.parametrize(
    "other",
    [
        {"attempt": 1},
        {"flow_name": "Other"},
        {"run_id": "8"},
        {"step_name": "test"},
        {"control_task": "13"},
    ],
)
def test_another_gang_s_object_is_not_seen(tmp_path: Path, other: Any) -> None:
    meet(tmp_path).publish(b"mine")
    meet(tmp_path, **other).close()
    assert meet(tmp_path).poll(0) == b"mine"


def test_odd_identities_stay_apart_and_inside(tmp_path: Path) -> None:
    odd = ["a'; echo foo", "é ☃", "..", ".", "a/b", "a%2Fb", "two\nlines"]
    for name in odd:
        meet(tmp_path / "store", control_task=name, run_id=name).publish(name.encode())
    for name in odd:
        assert meet(tmp_path / "store", control_task=name, run_id=name).poll(0) == name.encode()
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["mf.gang"]


def test_nobody_comes(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(MeetingTimeout, match=rf"published no address within 0\.4 s at {tmp_path}.*task has started"):
        meet(tmp_path).poll(0.4)
    assert 0.4 <= time.monotonic() - start < 10


def test_waiting_can_be_stopped(tmp_path: Path) -> None:
    stopped = threading.Event()
    timer = threading.Timer(0.3, stopped.set)
    timer.start()
    start = time.monotonic()
    with pytest.raises(MeetingStopped, match="stopped waiting for node 0"):
        meet(tmp_path).poll(DEADLINE, stopped.is_set)
    timer.join()
    # Well within the pause of a second that an unanswered wait has reached by then.
    assert time.monotonic() - start < 5


def test_a_half_written_object_is_read_again(tmp_path: Path) -> None:
    control = meet(tmp_path)
    control.publish(PAYLOAD)
    path = object_of(control)
    whole = path.read_bytes()
    for size in (0, 1, 10, whole.index(b"\n"), whole.index(b"\n") + 1, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(MeetingTimeout):
            meet(tmp_path).poll(0)
    timer = threading.Timer(0.2, path.write_bytes, [whole])
    timer.start()
    assert meet(tmp_path).poll(DEADLINE) == PAYLOAD
    timer.join()


@pytest.mark.parametrize(
    "content", [b"\n", b"mf.gang open\n", b"mf.gang ajar 0 0\n", b"other open 0 0\n", os.urandom(5000)]
)
def test_what_is_not_ours_is_not_taken(tmp_path: Path, content: bytes) -> None:
    path = object_of(meet(tmp_path))
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(MeetingTimeout):
        meet(tmp_path).poll(0)


def test_a_tombstone_cannot_be_made_of_an_invitation(tmp_path: Path) -> None:
    control = meet(tmp_path)
    control.publish(b"")
    path = object_of(control)
    path.write_bytes(path.read_bytes().replace(b"open", b"closed"))
    with pytest.raises(MeetingTimeout):
        meet(tmp_path).poll(0)


def break_it(meeting: DatastoreMeeting) -> Path:
    """Makes the datastore raise at each read: a file of metadata beside the object that is no JSON."""
    broken = Path(f"{meeting.location}_meta")
    broken.write_text("{")
    return broken


def test_a_datastore_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    control = meet(tmp_path)
    control.publish(b"x")
    break_it(control)
    with pytest.raises(
        MeetingFailed, match=r"cannot be read \(JSONDecodeError: .*Check that this node may read"
    ) as caught:
        meet(tmp_path).poll(DEADLINE)
    assert type(caught.value) is MeetingFailed
    with pytest.raises(MeetingFailed, match="cannot be read"):
        meet(tmp_path).poll(0)


def test_a_passing_error_of_the_datastore_costs_nothing(tmp_path: Path) -> None:
    control = meet(tmp_path)
    control.publish(PAYLOAD)
    timer = threading.Timer(0.3, break_it(control).unlink)
    timer.start()
    assert meet(tmp_path).poll(DEADLINE) == PAYLOAD
    timer.join()


def test_the_object_is_private_where_the_datastore_can(tmp_path: Path) -> None:
    control = meet(tmp_path)
    control.publish(b"secret")
    assert object_of(control).stat().st_mode & 0o077 == 0


def absent(node: int, text: str = "no disk") -> dict[str, Any]:
    return Failure(node, "absent", text, 1.0).to_json()


def test_reports_of_several_nodes_are_all_found_and_each_look_finds_only_new_ones(tmp_path: Path) -> None:
    control, others = meet(tmp_path), range(1, 5)
    assert control.new_failures(others) == []
    for node in (2, 3):
        assert not meet(tmp_path).has_reported(node)
        meet(tmp_path).report_failure(absent(node))
        assert meet(tmp_path).has_reported(node)
    assert sorted(found["node"] for found in control.new_failures(others)) == [2, 3]
    assert control.new_failures(others) == []
    meet(tmp_path).report_failure(absent(4))
    assert {found["node"] for found in control.new_failures(others)} >= {4}
    assert meet(tmp_path).new_failures() == [absent(4)], "the last one, where one suffices"


def test_reports_that_cannot_be_read_are_looked_for_again(tmp_path: Path) -> None:
    control = meet(tmp_path)
    control.report_failure(absent(1))
    last = Path(f"{control.location}-failed")
    whole = last.read_bytes()
    for content in (whole[:-1], b"other", whole.replace(b"mf.gang failed", b"mf.gang open")):
        last.write_bytes(content)
        assert control.new_failures([1]) == []
    last.write_bytes(whole)
    assert control.new_failures([1]) == [absent(1)]

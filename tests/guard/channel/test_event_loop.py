"""The guard's loop, and frames on a socket pair: real descriptors, threads and signals."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest

from metaflow_extensions.gang.core.guard.loop.event_loop import Loop
from metaflow_extensions.gang.core.guard.loop.framing import MAX_FRAME, Decoder, WireError, encode, fault
from metaflow_extensions.gang.core.guard.loop.stream import Stream


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    yield left, right
    left.close()
    right.close()


def until(loop: Loop, done: Callable[[], bool], seconds: float = 20.0) -> None:
    """Run the loop until ``done``; fail when it takes longer than any machine should."""
    end = time.monotonic() + seconds

    def look() -> None:
        if done():
            loop.stop()
        elif time.monotonic() > end:
            raise AssertionError(f"not done after {seconds} s")
        else:
            loop.call_later(0.005, look)

    look()
    loop.run()


def test_timers_run_in_their_order_and_cancelled_ones_do_not(loop: Loop) -> None:
    seen: list[int] = []
    loop.call_later(2.0, loop.stop)
    loop.call_later(1.0, lambda: seen.append(3))
    loop.call_later(0.01, lambda: seen.append(1))
    loop.call_later(0.01, lambda: seen.append(2))
    cancelled = loop.call_later(0.0, lambda: seen.append(99))
    cancelled.cancel()
    cancelled.cancel()
    begun = time.monotonic()
    loop.run()
    assert seen == [1, 2, 3]
    assert time.monotonic() - begun >= 2.0


def test_a_timer_may_be_cancelled_by_the_one_before_it(loop: Loop) -> None:
    seen: list[str] = []
    loop.call_later(0.01, lambda: second.cancel())
    second = loop.call_later(0.01, lambda: seen.append("second"))
    loop.call_later(0.02, loop.stop)
    loop.run()
    assert seen == []


def test_readers_and_writers_share_a_descriptor(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    seen: list[str] = []
    loop.add_writer(left, lambda: (seen.append("writable"), loop.remove_writer(left)))
    loop.add_reader(left, lambda: (seen.append(left.recv(9).decode()), loop.stop()))
    loop.call_later(0.01, lambda: right.send(b"hello"))
    loop.run()
    assert seen == ["writable", "hello"]
    loop.remove_reader(left)
    loop.remove_reader(left)
    right.send(b"more")
    loop.call_later(0.02, loop.stop)
    loop.run()
    assert seen == ["writable", "hello"]


def test_a_callback_may_remove_another_that_is_ready_in_the_same_round(loop: Loop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    seen: list[int] = []

    def on_read(index: int) -> None:
        seen.append(index)
        for other in (0, 1):
            if other != index:
                loop.remove_reader(pairs[other][0])

    for index in (0, 1):
        pairs[index][1].send(b"x")
        loop.add_reader(pairs[index][0], lambda index=index: on_read(index))
    loop.call_later(0, loop.stop)
    loop.run()
    assert len(seen) == 1
    for sock in (sock for two in pairs for sock in two):
        sock.close()


def test_a_reused_descriptor_number_does_not_get_the_old_ones_event(loop: Loop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    fresh: list[socket.socket] = []
    wrong: list[str] = []

    def on_read(index: int) -> None:
        other = 1 - index
        if fresh:
            return
        number = pairs[other][0].fileno()
        loop.remove_reader(pairs[other][0])
        pairs[other][0].close()
        fresh.extend(socket.socketpair())
        assert fresh[0].fileno() == number
        loop.add_reader(fresh[0], lambda: wrong.append("called for what another descriptor had"))

    for index in (0, 1):
        pairs[index][1].send(b"x")
        loop.add_reader(pairs[index][0], lambda index=index: on_read(index))
    loop.call_later(0.02, loop.stop)
    loop.run()
    assert fresh and not wrong
    for sock in [sock for two in pairs for sock in two] + fresh:
        sock.close()


def test_what_arrived_is_seen_before_timers_that_are_due(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    seen: list[str] = []
    loop.add_reader(left, lambda: seen.append(left.recv(9).decode()))
    loop.call_later(0.01, lambda: (seen.append("timer"), loop.stop()))
    right.send(b"data")
    time.sleep(0.05)  # as a guard that was stopped for a while
    loop.run()
    assert seen == ["data", "timer"]


def test_another_thread_wakes_the_loop(loop: Loop) -> None:
    seen: list[str] = []

    def work() -> None:
        for index in range(1000):
            loop.call_soon_threadsafe(lambda index=index: seen.append(f"{index}"))
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=work)
    thread.start()
    loop.run()
    thread.join()
    assert seen == [str(index) for index in range(1000)]


def test_a_thread_that_is_later_than_the_loop_does_no_harm() -> None:
    loop = Loop()
    loop.close()
    loop.call_soon_threadsafe(lambda: None)


def test_a_child_that_ends_is_seen_at_once(loop: Loop) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    seen: list[float] = []
    loop.on_signal(signal.SIGCHLD, lambda: (seen.append(time.monotonic()), loop.stop()))
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "pass"])
    loop.call_later(20, loop.stop)
    loop.run()
    assert len(seen) == 1
    assert child.wait(5) == 0
    loop.close()
    assert signal.getsignal(signal.SIGCHLD) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_is_kept_however_much_threads_post(loop: Loop) -> None:
    seen: list[str] = []
    loop.on_signal(signal.SIGUSR1, lambda: (seen.append("signal"), loop.stop()))
    for _ in range(100_000):  # more than a pipe holds
        loop.call_soon_threadsafe(lambda: None)
    os.kill(os.getpid(), signal.SIGUSR1)
    loop.call_later(20, loop.stop)
    loop.run()
    assert seen == ["signal"]


@pytest.mark.parametrize("where", ["reader", "timer", "posted"])
def test_an_exception_leaves_run(loop: Loop, pair: tuple[socket.socket, socket.socket], where: str) -> None:
    def fail() -> None:
        raise LookupError("a fault of the guard")

    if where == "reader":
        pair[1].send(b"x")
        loop.add_reader(pair[0], fail)
    elif where == "timer":
        loop.call_later(0, fail)
    else:
        loop.call_soon_threadsafe(fail)
    loop.call_later(20, loop.stop)
    with pytest.raises(LookupError, match="a fault of the guard"):
        loop.run()


def test_a_frame_is_as_documented() -> None:
    frame = encode({"a": 1}, b"payload")
    assert frame == struct.pack(">II", 4 + 7 + 7, 7) + b'{"a":1}' + b"payload"


FRAMES: list[tuple[dict[str, Any], bytes]] = [
    ({}, b""),
    ({"name": "größe \udcff \x00"}, b"\x00\xff" * 100),
    ({"nested": {"list": [1, 2.5, None, True]}}, b""),
    ({"n": 2**60}, os.urandom(100_000)),
]


@pytest.mark.parametrize("step", [1, 3, 7, 4096, 10**9])
def test_frames_come_back_however_they_are_cut(step: int) -> None:
    decoder = Decoder()
    stream = b"".join(encode(header, payload) for header, payload in FRAMES)
    got = []
    for at in range(0, len(stream), step):
        got += list(decoder.feed(stream[at : at + step]))
    assert got == FRAMES
    assert decoder.pending == 0


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (struct.pack(">I", 3) + b"abc", "announces 3 bytes"),
        (struct.pack(">I", 1005), "and 1000 is the limit"),
        (b"GET / HTTP/1.1\r\n\r\n", "is the limit here"),
        (struct.pack(">II", 6, 3) + b"{}", "announces a header of 3 bytes"),
        (struct.pack(">II", 6, 2**32 - 1) + b"{}", "announces a header of"),
        (struct.pack(">II", 6, 2) + b"{]", "is not JSON"),
        (struct.pack(">II", 6, 2) + b"[]", "is a JSON list, not an object"),
        (struct.pack(">II", 7, 3) + b'"\xff"', "is not JSON"),
        (struct.pack(">II", 4, 0), "is not JSON"),
        (struct.pack(">II", 904, 900) + b"[" * 900, "is not"),
        (struct.pack(">II", 8, 4) + "{}".encode("utf-16-le"), "is not JSON"),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        list(Decoder(limit=1000).feed(data))


def test_a_message_beyond_the_limit_is_refused_by_its_sender() -> None:
    header: dict[str, Any] = {}
    assert len(encode(header, b"x" * (MAX_FRAME - 2))) == MAX_FRAME + 8
    with pytest.raises(WireError, match=f"{MAX_FRAME} bytes is the limit"):
        encode(header, b"x" * (MAX_FRAME - 1))


def test_large_frames_take_linear_time() -> None:
    """16 MiB in pieces of 1 kB: with the buffer copied for each piece this would be 128 GiB of copying."""
    frame = encode({}, bytes(MAX_FRAME - 2))
    decoder = Decoder()
    begun = time.monotonic()
    got = [payload for at in range(0, len(frame), 1024) for _, payload in decoder.feed(frame[at : at + 1024])]
    assert [len(payload) for payload in got] == [MAX_FRAME - 2]
    many = encode({"small": 1}) * 200_000
    assert sum(1 for _ in decoder.feed(many)) == 200_000
    assert time.monotonic() - begun < 15


def test_a_stream_carries_frames_both_ways_in_order(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    got: list[tuple[dict[str, Any], bytes]] = []
    left, right = Stream(loop, pair[0]), Stream(loop, pair[1])
    left.on_frame = lambda header, payload: got.append((header, payload))
    right.on_frame = lambda header, payload: right.send(header, payload)
    sent = [({"n": index}, os.urandom(index * 4096)) for index in range(200)]
    for header, payload in sent:
        left.send(header, payload)
    assert left.queued > 0
    until(loop, lambda: len(got) == len(sent))
    assert got == sent
    assert left.queued == right.queued == 0
    left.close(flush=False)
    right.close(flush=False)


def test_the_end_of_a_stream_is_told_once(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    reasons: list[str] = []
    stream = Stream(loop, pair[0])
    stream.on_close = reasons.append
    pair[1].send(encode({})[:-1])
    pair[1].close()
    until(loop, lambda: bool(reasons))
    assert reasons == ["closed without a word"]
    assert stream.closed
    stream.send({"into": "the void"})
    after: list[str] = []
    stream.close(then=lambda: after.append("closed"))
    assert after == ["closed"]
    assert reasons == ["closed without a word"]


def test_a_malformed_frame_ends_a_stream_with_its_sentence(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    reasons: list[str] = []
    frames: list[dict[str, Any]] = []
    stream = Stream(loop, pair[0], limit=100)
    stream.on_frame = lambda header, payload: frames.append(header)
    stream.on_close = reasons.append
    pair[1].send(encode({"good": 1}) + struct.pack(">I", 200))
    until(loop, lambda: bool(reasons))
    assert frames == [{"good": 1}]
    assert reasons == ["A frame announces 200 bytes, and 100 is the limit here."]


def test_a_flushing_close_delivers_everything(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    got: list[int] = []
    events: list[str] = []
    left, right = Stream(loop, pair[0]), Stream(loop, pair[1])
    left.on_close = lambda reason: events.append("told the one that closed")
    right.on_frame = lambda header, payload: got.append(len(payload))
    right.on_close = lambda reason: (events.append(reason), right.close(flush=False))
    right.send({"never": "read"}, bytes(100_000))  # unread data must not turn the close into a reset
    for _ in range(20):
        left.send({}, bytes(1_000_000))
    left.close(flush=True, then=lambda: events.append("gone"))
    left.close(flush=True)
    left.send({"too": "late"})
    until(loop, lambda: "gone" in events)
    assert got == [1_000_000] * 20
    assert events == ["closed without a word", "gone"]


def test_a_close_does_not_wait_for_ever_for_one_who_does_not_read(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    events: list[str] = []
    stream = Stream(loop, pair[0])
    stream.send({}, bytes(10_000_000))
    begun = time.monotonic()
    stream.close(then=lambda: events.append("gone"))
    until(loop, lambda: bool(events))
    assert 1.5 < time.monotonic() - begun < 10


def test_a_callback_may_close_its_stream_between_two_frames(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    got: list[dict[str, Any]] = []
    stream = Stream(loop, pair[0])
    stream.on_frame = lambda header, payload: (got.append(header), stream.close(flush=False))
    pair[1].send(encode({"n": 1}) + encode({"n": 2}))
    loop.call_later(0.05, loop.stop)
    loop.run()
    assert got == [{"n": 1}]


def test_last_words_are_read_though_writing_fails(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    """The other side wrote, and died: what it wrote says more than our broken pipe."""
    events: list[str] = []
    stream = Stream(loop, pair[0])
    stream.on_frame = lambda header, payload: events.append(header["last"])
    stream.on_close = events.append
    pair[1].send(encode({"last": "words"}))
    pair[1].close()
    stream.send({"to": "nobody"})
    stream.send({"to": "nobody"})
    assert events == []
    until(loop, lambda: len(events) == 2)
    assert events == ["words", "reset"]


def test_faults_are_short_phrases() -> None:
    assert fault(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")) == "refused"
    assert fault(OSError(errno.EMFILE, "Too many open files")) == "too many open files"
    assert fault(OSError("of no number")) == "of no number"


@pytest.mark.uncounted
def test_the_guards_part_of_it_imports_little() -> None:
    """The guard starts in about 15 ms; each of these would take 8 to 60 more."""
    folder = os.path.abspath(os.path.join(str(sys.modules[Loop.__module__].__file__), "../../.."))
    code = (
        f"import sys, json; sys.path.insert(0, {folder!r}); import guard.channel.accept, guard.channel.connect; "
        "print(json.dumps(sorted(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, check=True, timeout=60)
    modules = json.loads(out.stdout)
    assert {"guard.channel.accept", "guard.channel.connect"} <= set(modules)
    heavy = {"asyncio", "ssl", "dataclasses", "inspect", "threading", "subprocess", "logging", "tempfile"}
    assert heavy.isdisjoint(modules)

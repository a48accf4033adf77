"""The output of a node's processes: all of it, in order, byte for byte, in the node's own log; labelled on the console.

Real pipes, children and flows throughout; what the sinks do to bytes is also searched with Hypothesis.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import tempfile
import termios
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from metaflow.mflog.mflog import merge_logs
from support.flows import FlowRunner
from support.guard.launches import END_S, collected, process, run_launch

from metaflow_extensions.gang.core.guard.children import output
from metaflow_extensions.gang.core.guard.children.output import HELD_LIMIT, Labelled, Log, Pump, Raw
from metaflow_extensions.gang.core.guard.children.user_log import write_all
from metaflow_extensions.gang.core.guard.rank_reports.tail import TAIL_LIMIT, Tail
from metaflow_extensions.gang.core.logs import to_mflog
from metaflow_extensions.gang.core.step.live_output import buffered_lines

RUN_S = 120.0
"""For a flow to end, on a machine that is busy with other tests."""

LINES = 10_538
"""Of 199 bytes: 2 MiB."""

SPEAKER = r"""
import os, sys, time

def everything(fd, data):
    while data:
        data = data[os.write(fd, data):]

what = sys.argv[1]
if what in ("stdout", "stderr"):
    everything({"stdout": 1, "stderr": 2}[what], b"".join(b"%06d " % n + b"x" * 192 + b"\n" for n in range(10_538)))
elif what == "split":
    for byte in "grün 10 € 😀\n".encode():
        os.write(1, bytes([byte]))
        sys.stdout.flush()
        time.sleep(0.01)
elif what == "bar":
    for percent in range(0, 101, 2):
        os.write(2, b"\rbar %3d%%" % percent)
        time.sleep(0.03)
    os.write(2, b"\nbar is full\n")
elif what == "last":
    os.write(1, b"\x00\xff not text\r\n\n[MFLOG|0|2000-01-01T00:00:00.000000Z|x|y]as a log has it\n")
    sys.stdout.write("last " + "x" * 100_000)
"""

FLOW = """
import sys, time
from metaflow import FlowSpec, current, gang, step

class Output(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang
    @step
    def work(self):
        if current.gang.node_index == 1:
            for what in ("stdout", "stderr", "split", "bar", "last"):
                current.gang.run([sys.executable, "speaker.py", what])
        else:
            # On the same console, all the while.
            for number in range(2000):
                print("control line", number)
                time.sleep(0.001)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Output()
"""


@pytest.mark.slow
def test_lines_that_come_together_are_shown_together(flow_run: FlowRunner) -> None:
    """Metaflow would show the first and keep the others until more comes."""
    head, _, _ = FLOW.partition("        if current.gang")
    _, _, end = FLOW.partition("        self.next(self.join)")
    body = """
        import os, time
        if current.gang.is_control:
            os.write(1, b"first;\\nsecond;\\nthird;\\n")
        while not os.path.exists("finish"):
            time.sleep(0.02)
        self.next(self.join)"""
    run = flow_run(head + body + end)
    run.wait_for("third;", RUN_S)
    assert re.findall(r"\w+(?=;\n)", run.output) == ["first", "second", "third"]
    (run.folder / "finish").touch()
    run.ok(RUN_S)


def test_whole_lines_in_a_pipe_are_counted_without_waiting() -> None:
    read, write = os.pipe()
    with open(read, "rb") as reader, open(write, "wb", buffering=0) as writer:
        assert buffered_lines(reader) == 0
        for data, lines in ((b"half ", 0), (b"a line\nand two\nand", 2), (b"", 2)):
            writer.write(data)
            if data.startswith(b"a"):
                assert reader.read(5) == b"half "
            assert buffered_lines(reader) == lines
        assert [reader.readline(), reader.readline()] == [b"a line\n", b"and two\n"]
        assert buffered_lines(reader) == 0 and os.get_blocking(read)
        writer.close()
        assert reader.readline() == b"and" and buffered_lines(reader) == 0


@pytest.mark.slow
def test_all_output_of_a_node_arrives_in_its_own_log_and_labelled_on_the_console(flow_run: FlowRunner) -> None:
    started = time.monotonic()
    run = flow_run(FLOW, files={"speaker.py": SPEAKER}).ok(RUN_S)
    print(f"4 MiB of output through a run in {time.monotonic() - started:.1f} s")
    numbered = [b"%06d " % number + b"x" * 192 for number in range(LINES)]
    task = run.node_tasks("work")[1]

    stdout = [line for _, line in task.loglines("stdout", as_unicode=False)]
    assert stdout[:LINES] == numbered
    assert stdout[LINES:] == [
        "grün 10 € 😀".encode(),
        b"\x00\xff not text\r",
        b"",
        b"[MFLOG|0|2000-01-01T00:00:00.000000Z|x|y]as a log has it",
        b"last " + b"x" * 100_000,
    ]
    stderr = [line for _, line in task.loglines("stderr", as_unicode=False)]
    assert stderr[:LINES] == numbered
    assert stderr[LINES:] == [b"".join(b"\rbar %3d%%" % percent for percent in range(0, 101, 2)), b"bar is full"]

    # "2025-01-31 12:00:00.000 [17/work/2 (pid 99)] text", and what Metaflow itself says of the task.
    shown = re.findall(r"^\S+ \S+ \[\d+/work/\d+ \(pid \d+\)\] (.*)\n", run.stdout, re.MULTILINE)
    ours = [line for line in shown if not line.startswith("Task ")]
    assert [line for line in ours if line.startswith("control")] == [f"control line {number}" for number in range(2000)]
    (closing,) = [line for line in ours if not line.startswith(("control", "[node 1]"))]
    assert re.fullmatch(r"\[gang\] joined [\d.]+ s, body [\d.]+ s, stored [\d.]+ s; card: python .*", closing)
    both = re.findall(r"\] \[node 1\] (\d{6}) x", run.stdout)
    assert sorted(both) == sorted(2 * [f"{number:06d}" for number in range(LINES)])
    bar = [int(percent) for percent in re.findall(r"^.*\] \[node 1\] bar +(\d+)%$", run.stdout, re.MULTILINE)]
    assert bar == sorted(set(bar)), "each state once, as it moved"
    assert bar[0] < 100 and bar[-1] == 100
    assert len(bar) >= 2, "shown while it moves, not only when it is full"
    assert any(line == "[node 1] last " + "x" * 100_000 for line in ours), "whole, though no newline ends it"


# -- the sinks ---------------------------------------------------------------------------------------------------------


def written(sink: Callable[[int], Any], chunks: list[bytes]) -> bytes:
    """What a sink makes of ``chunks``."""
    with collected() as (fd, finish):
        made = sink(fd)
        for chunk in chunks:
            made.write(chunk)
        made.end()
        return finish()


# What matters to a sink: ends of lines, states of bars, bytes that are no text; never the label itself.
CHUNKS = st.lists(st.text(alphabet="ab\r\n\0€", max_size=20).map(str.encode), max_size=12)
searched = settings(max_examples=150, database=None, deadline=None, derandomize=True)


def ended(data: bytes) -> bytes:
    return data + b"\n" if data and not data.endswith(b"\n") else data


@searched
@given(CHUNKS)
@example([b"a\r", b"\nb"])
@example(["€".encode()[:1], "€".encode()[1:] + b"\n"])
@example([b"no end\r"])
def test_labels_are_all_that_labelled_adds(chunks: list[bytes]) -> None:
    shown = written(lambda fd: Labelled(fd, "[rank 3] "), chunks)
    assert shown.replace(b"[rank 3] ", b"") == ended(b"".join(chunks))
    assert all(line.startswith(b"[rank 3] ") for line in shown.split(b"\n")[:-1])


@searched
@given(CHUNKS)
def test_of_a_bar_the_first_and_the_last_state_are_shown_as_lines(chunks: list[bytes]) -> None:
    shown = written(lambda fd: Labelled(fd, "[node 1] ", progress_period=1000.0), chunks)
    assert all(line.startswith(b"[node 1] ") for line in shown.split(b"\n")[:-1])
    lines = shown.replace(b"[node 1] ", b"").split(b"\n")
    data = ended(b"".join(chunks))
    # Behind the last bare carriage return of each line is what its reader ends up seeing.
    final = [re.split(rb"\r(?!$)", line)[-1] for line in data.split(b"\n")[:-1]]
    seen = {line.rstrip(b"\r") for line in lines}
    assert [line for line in final if line.strip(b"\r") and line.rstrip(b"\r") not in seen] == []


def test_a_bar_is_shown_at_most_once_per_period() -> None:
    states = [b"%d%%\r" % percent for percent in range(100)]
    assert written(lambda fd: Labelled(fd, "# ", progress_period=1000.0), [*states, b"100%\n"]) == b"# 0%\n# 100%\n"
    every = written(lambda fd: Labelled(fd, "# ", progress_period=0.0), [*states, b"100%\n"])
    assert every == b"".join(b"# %d%%\n" % percent for percent in range(101))


def test_an_endless_line_is_passed_on_in_pieces() -> None:
    data = b"x" * (3 * HELD_LIMIT)
    shown = written(lambda fd: Labelled(fd, "# "), [data[at : at + 65536] for at in range(0, len(data), 65536)])
    assert shown.replace(b"# ", b"").replace(b"\n", b"") == data
    assert shown.count(b"\n") == 3


def test_whole_lines_are_written_in_pieces_that_the_kernel_keeps_whole() -> None:
    """The task itself writes to the same pipe: what it says must not fall into the middle of another node's line."""
    read, write = os.pipe()
    try:
        sink = Labelled(write, "# ")
        other = threading.Event()

        def interfere() -> None:
            while not other.wait(0):
                os.write(write, b"control\n")

        found = bytearray()

        def collect() -> None:
            while data := os.read(read, 4096):
                found.extend(data)

        threads = [threading.Thread(target=interfere), threading.Thread(target=collect)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            sink.write(b"".join(b"%05d " % number + b"x" * 93 + b"\n" for number in range(1000)))
        other.set()
        threads[0].join(END_S)
        os.close(write)
        threads[1].join(END_S)
    finally:
        os.close(read)
    lines = bytes(found).split(b"\n")[:-1]
    assert len([line for line in lines if line != b"control"]) == 10_000
    assert [line for line in lines if line != b"control" and not re.fullmatch(rb"# \d{5} x{93}", line)] == []


@searched
@given(CHUNKS)
@example([b"a\nb\nc\n"])
def test_a_log_gives_back_what_was_written_into_it(chunks: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "log")
        log = Log(path)
        for chunk in chunks:
            log.write(chunk)
        log.end()
        lines = [line.msg for line in merge_logs([to_mflog(path).read()])]
    assert b"".join(line + b"\n" for line in lines) == ended(b"".join(chunks))


def test_a_log_keeps_the_order_of_many_lines_of_one_moment(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"))
    log.write(b"".join(b"%d\n" % number for number in range(1000)))
    log.end()
    lines = [line.msg for line in merge_logs([to_mflog(str(tmp_path / "log")).read()])]
    assert lines == [b"%d" % number for number in range(1000)]


def test_a_log_whose_end_is_cut_or_whose_clock_went_back_is_read_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(
        b"2030-01-01T00:00:02.000000 first\n"
        b"2030-01-01T00:00:01.000000 second\n"
        b"2030-01-01T00:00:03.000000 third\n"
        b"2030-01-01T0"
    )
    stored = to_mflog(str(path)).read()
    assert [line.msg for line in merge_logs([stored])] == [b"first", b"second", b"third"]


def test_a_long_log_is_stored_without_its_middle_and_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        for number in range(400_000):
            file.write(b"2030-01-01T00:00:01.%06d line %06d %b\n" % (number, number, b"x" * 40))
    tracemalloc.start()
    with to_mflog(str(path), 4 << 20) as stored:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        lines = [line.msg for line in merge_logs([stored.read()])]
    assert peak < 16 << 20
    left_out = [index for index, line in enumerate(lines) if b"bytes are left out of this log" in line]
    assert len(left_out) == 1 and 10_000 < left_out[0] < len(lines) - 10_000
    assert lines[0].startswith(b"line 000000 ") and lines[-1].startswith(b"line 399999 ")
    numbers = [int(line.split()[1]) for line in lines if line.startswith(b"line ")]
    said = int(re.findall(rb"(\d+) bytes", lines[left_out[0]])[0])
    assert numbers == sorted(numbers)
    assert said == path.stat().st_size - len(numbers) * (path.stat().st_size // 400_000)


def test_a_tail_keeps_the_end() -> None:
    tail = Tail(limit=100)
    for number in range(1000):
        tail.write(b"%d " % number)
    assert tail.text() == "".join(f"{number} " for number in range(1000))[-100:]
    tail.write(b"y" * 5000)
    assert tail.text() == "y" * 100
    half = Tail(limit=4)
    half.write("aa€".encode()[1:])
    half.write(b"b")
    assert half.text() == "€b", "a character that was cut is shown as such, and nothing raised"
    assert TAIL_LIMIT >= 12_000, "as much as travels in a failure's record"


def test_two_streams_that_share_a_tail_do_not_cut_each_other_s_lines() -> None:
    tail = Tail()
    out, err = tail.stream(), tail.stream()
    err.write(b"Traceback\nValueErr")
    out.write(b"x\ny\nz")
    assert tail.text() == "Traceback\nx\ny\nzValueErr", "what is not over yet counts too"
    err.write(b"or: deliberate\n")
    out.end()
    assert tail.text() == "Traceback\nx\ny\nValueError: deliberate\nz"
    err.write(b"y" * 3 * TAIL_LIMIT)
    assert tail.text() == "y" * TAIL_LIMIT


def test_a_label_begins_a_line_also_after_one_that_was_left_unfinished() -> None:
    read, write = os.pipe()
    bar, node = Raw(write), Labelled(write, "[node 1] ")
    bar.write(b" 50%|##")
    node.write(b"one\ntwo\n")
    bar.write(b"\r 60%|###")
    write_all(write, b"[gang] three\n")
    bar.write(b"\r100%\n")
    node.write(b"four\n")
    os.close(write)
    with open(read, "rb") as file:
        assert file.read().split(b"\n") == [
            b" 50%|##",
            b"[node 1] one",
            b"[node 1] two",
            b"\r 60%|###",
            b"[gang] three",
            b"\r100%",
            b"[node 1] four",
            b"",
        ]


def test_raw_is_byte_for_byte_and_a_reader_that_has_gone_does_no_harm() -> None:
    data = bytes(range(256)) * 1000 + b"\n"
    assert written(Raw, [data[at : at + 999] for at in range(0, len(data), 999)]) == data
    read, write = os.pipe()
    os.close(read)
    write_all(write, b"nobody reads this")
    os.close(write)


# -- pumps -------------------------------------------------------------------------------------------------------------


def test_a_pump_waits_for_a_slow_reader_and_loses_nothing() -> None:
    source, feed = os.pipe()
    read, write = os.pipe()
    over, tail = threading.Event(), Tail(limit=10**6)
    pump = Pump(source, [Raw(write), tail], over.set)
    data = os.urandom(300_000)
    feeder = threading.Thread(target=write_all_plainly, args=(feed, data))
    feeder.start()
    try:
        found = b""
        while len(found) < len(data):
            time.sleep(0.01)
            assert not over.is_set()
            found += os.read(read, 16_384)
        assert found == data
        feeder.join(END_S)
        assert pump.written() == len(data)
        os.close(feed)
        assert over.wait(END_S)
        assert pump.passed == len(data) == pump.written()
    finally:
        os.close(read)
        os.close(write)


class Listening:
    """A sink that keeps each write, and tells of it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.arrived = threading.Semaphore(0)

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.arrived.release()

    def end(self) -> None:
        pass


def wait_until_taken(pipe: int) -> None:
    deadline = time.monotonic() + END_S
    while fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)) != bytes(4):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_line_that_comes_in_pieces_is_passed_on_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """``print("ready", 0)`` without buffers is four writes; another process's line must not come between them."""
    monkeypatch.setattr(output, "LINE_PATIENCE_S", END_S)
    source, feed = os.pipe()
    sink, over = Listening(), threading.Event()
    Pump(source, [sink], over.set)
    for piece in (b"ready", b" ", b"0", b"\n"):
        os.write(feed, piece)
        wait_until_taken(feed)
    assert sink.arrived.acquire(timeout=END_S)
    assert sink.written == [b"ready 0\n"]
    os.write(feed, b"the end")
    os.close(feed)
    assert over.wait(END_S / 2)
    assert sink.written[1:] == [b"the end"]


def test_a_process_that_writes_without_a_pause_is_not_cut_within_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as one read takes ends somewhere in a line, and another node's line came there."""
    monkeypatch.setattr(output, "LINE_PATIENCE_S", END_S)
    source, feed = os.pipe()
    sink, over = Listening(), threading.Event()
    Pump(source, [sink], over.set)
    data = b"".join(b"%d %s\n" % (number, b"x" * 200) for number in range(3000))
    write_all_plainly(feed, data)
    os.close(feed)
    assert over.wait(END_S)
    assert b"".join(sink.written) == data and len(sink.written) > 1
    assert all(piece.endswith(b"\n") for piece in sink.written)


def test_a_line_longer_than_is_held_is_passed_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "LINE_PATIENCE_S", END_S)
    source, feed = os.pipe()
    sink, over = Listening(), threading.Event()
    Pump(source, [sink], over.set)
    data = b"y" * (3 * HELD_LIMIT) + b"\n"
    write_all_plainly(feed, data)
    os.close(feed)
    assert over.wait(END_S)
    assert b"".join(sink.written) == data and len(sink.written) > 1


def test_a_prompt_does_not_wait_for_the_end_of_its_line() -> None:
    source, feed = os.pipe()
    sink, over = Listening(), threading.Event()
    Pump(source, [sink], over.set)
    os.write(feed, b"password: ")
    assert sink.arrived.acquire(timeout=END_S)
    os.close(feed)
    assert over.wait(END_S) and sink.written == [b"password: "]


def write_all_plainly(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def test_what_a_process_wrote_before_it_ended_arrives_even_where_the_reader_is_slow() -> None:
    """Pipes hold 64 kB each: the process ends long before its output is through."""
    read, write = os.pipe()
    found = bytearray()

    def collect() -> None:
        time.sleep(1.5)  # Metaflow's runtime on a machine that is busy
        while data := os.read(read, 65536):
            found.extend(data)

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        program = "import os; os.write(1, b'x' * 179_993 + b'THE END')"
        ended = run_launch(process(sys.executable, "-c", program), out=write)
    finally:
        os.close(write)
        thread.join(END_S)
        os.close(read)
    assert ended.results[0]["tail"].endswith("xTHE END"), "all had been passed on when the launch was over"
    assert bytes(found) == b"x" * 179_993 + b"THE END"


@pytest.mark.parametrize("does", ["sleep 1000", "yes"])
def test_a_descendant_that_keeps_the_pipe_does_not_hold_up_the_end(does: str) -> None:
    with collected() as (write, finish):
        ended = run_launch(process("sh", "-c", f"echo hello; setsid {does} & exec sleep 0.1"), out=write)
        assert ended.results[0]["exit_code"] == 0
        assert ended.seconds < END_S / 3
        assert finish().startswith(b"hello\n")

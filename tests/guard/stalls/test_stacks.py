"""Stacks of real processes, and what counts as progress: the parts of the watch for a stall, each by itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import metaflow  # noqa: F401 - before any import of the extension
import pytest
from support.requirements import missing

from metaflow_extensions.gang.core.guard.loop.event_loop import Loop
from metaflow_extensions.gang.core.guard.stalls import c_frames, frames, groups, stack_file
from metaflow_extensions.gang.core.guard.stalls.dumps import Dumps
from metaflow_extensions.gang.core.guard.stalls.usage import Usage, signs

REGISTER = f"""
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("stack_file", {stack_file.__file__!r})
stack_file = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stack_file)
"""

Program = Callable[[str], int]


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """Starts a program that prints a line when it is ready."""
    with ExitStack() as stack:

        def start(code: str) -> int:
            process = subprocess.Popen([sys.executable, "-u", "-c", REGISTER + code], stdout=subprocess.PIPE, text=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            return process.pid

        yield start


def collected(folder: Path, roots: dict[int, str]) -> list[dict[str, object]]:
    loop = Loop()
    found: list[list[dict[str, object]]] = []

    def then(records: list[dict[str, object]], texts: dict[int, str]) -> None:
        found.append(records)
        loop.stop()

    Dumps(loop, lambda: str(folder), lambda: roots).collect(then)
    loop.call_later(30.0, loop.stop)
    loop.run()
    loop.close()
    return found[0]


def test_each_process_shows_where_it_stands_and_none_is_harmed(tmp_path: Path, program: Program) -> None:
    register = f"stack_file.register({str(tmp_path)!r}, %r)\n"
    sleeps = program(register % "3" + "def waits():\n print('ready'); time.sleep(1000)\nwaits()")
    closed = program(register % "4" + "os.closerange(3, 1000); print('ready'); time.sleep(1000)")
    waits = "import time; print('ready', flush=True); time.sleep(1000)"
    becomes = program(register % "5" + f"os.execv(sys.executable, [sys.executable, '-c', {waits!r}])")
    own = program(
        "import signal\nsignal.signal(stack_file.DUMP, lambda *_: os._exit(7))\n"
        + register % "6"
        + "print('ready'); time.sleep(1000)"
    )
    other = program("print('ready'); time.sleep(1000)")
    pids = (sleeps, closed, becomes, own, other)
    records = collected(tmp_path, {pid: f"process of {index}" for index, pid in enumerate(pids)})
    assert [record["rank"] for record in records] == [3, None, None, None, None]
    assert str(records[0]["place"]).startswith("waits at ")
    assert all(", state " in str(record["place"]) for record in records[1:])
    for pid in pids:  # a signal for which there is no handler would have ended it by now
        assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "SR"


def test_the_interpreter_answers_where_the_main_thread_gets_back_to_it(tmp_path: Path, program: Program) -> None:
    register = f"stack_file.register({str(tmp_path)!r}, '%s')\nimport hashlib\nprint('ready')\n"
    spins = program(register % "0" + "hashlib.pbkdf2_hmac('sha256', b'', b'', (1 << 31) - 1)")
    works = program(register % "1" + "while True: hashlib.pbkdf2_hmac('sha256', b'', b'', 50_000)")
    dumps = Dumps(Loop(), lambda: str(tmp_path), dict)
    dumps.ask(dumps.known())
    end = time.monotonic() + 30
    answer = stack_file.ANSWER.decode()
    while answer not in dumps.written()[works]:
        assert time.monotonic() < end
        time.sleep(0.05)
    while not dumps.written()[spins]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert answer not in dumps.written()[spins]
    assert frames.threads(dumps.written()[spins])[-1][0].name == "<module>"


TEXT = """Thread 0x00007f67 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 320 in wait
  File "/usr/lib/python3.11/threading.py", line 980 in run

Current thread 0x00007f68 (most recent call first):
  File "/v/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 2501 in all_reduce
  File "/v/lib/python3.11/site-packages/torch/distributed/c10d_logger.py", line 81 in wrapper
  File "/home/me/train.py", line 31 in main
  File "/v/lib/python3.11/site-packages/metaflow_extensions/gang/core/ranks/rank_main.py", line 73 in main
"""


def test_the_users_line_and_what_it_called_is_the_place() -> None:
    main = frames.threads(TEXT)[-1]
    place, inner = frames.place(main)
    assert place == "all_reduce at train.py:31"
    assert inner.endswith("distributed_c10d.py:2501")
    assert frames.shown(main).splitlines()[-1] == "main at /home/me/train.py:31"
    own = TEXT.replace("/v/lib/python3.11/site-packages/torch", "/home/me/torch")
    assert frames.place(frames.threads(own)[-1]) == ("all_reduce at distributed_c10d.py:2501", "")
    assert frames.place(frames.threads(TEXT)[0])[0] == "wait at threading.py:320"
    assert frames.same(TEXT, TEXT, True) and frames.same(TEXT, TEXT.replace("line 320", "line 321"), False)
    assert not frames.same(TEXT, TEXT.replace("line 320", "line 321"), True)
    assert not frames.same(TEXT, TEXT.replace("line 31 ", "line 33 "), False)


def record(rank: int | None, place: str) -> dict[str, object]:
    title = "the body" if rank is None else f"rank {rank}"
    return {"rank": rank, "title": title, "place": place, "inner": "", "stack": "f at /a.py:1"}


def test_groups_name_the_one_that_stands_alone_first() -> None:
    found = groups.grouped(
        {
            0: [record(rank, "all_reduce at train.py:31") for rank in (0, 1, 2, 3)],
            1: [
                record(4, "all_reduce at train.py:31"),
                record(5, "load_shard at data.py:12"),
                *[record(rank, "all_reduce at train.py:31") for rank in (6, 7)],
            ],
        }
    )
    assert groups.line(found) == (
        "rank 5 in load_shard at data.py:12; 7 ranks (0-4, 6, 7) in all_reduce at train.py:31"
    )
    assert found[1]["nodes"] == [0, 1]
    text = groups.text(found, [2, 3])
    assert text.splitlines()[:2] == ["rank 5 in load_shard at data.py:12:", "  | f at /a.py:1"]
    assert text.splitlines()[-1] == "Of nodes 2, 3 nothing has come."
    many = groups.grouped({node: [record(None, "state S, waits in futex")] for node in range(5)})
    assert groups.line(many) == "the body of node 0 and 4 more state S, waits in futex"


def test_what_is_work_and_what_may_be_a_wait() -> None:
    before = {1: Usage(), 2: Usage()}

    def work(**used: float) -> tuple[bool, set[int]]:
        found = signs(before, {1: Usage(**used), 2: Usage()}, 10.0, known={1}, body=2)  # type: ignore[arg-type]
        return bool(found.work), found.burning

    assert work(cpu_s=0.4) == (False, set())  # as a wait in gloo
    assert work(cpu_s=10.0) == (False, {1})
    assert work(wanted_s=9.0) == (False, {1})  # others have the processors
    assert work(children_s=1.0)[0] and work(faults=1000)[0] and work(read_and_written=1 << 20)[0]
    assert not work(read_and_written=4096, faults=100)[0]
    of_a_child = signs(before, {1: Usage(), 2: Usage(), 3: Usage(cpu_s=5.0)}, 10.0, known={1}, body=2)
    assert of_a_child.work
    assert signs(before, {1: Usage(), 2: Usage(output=30)}, 10.0, known={1}, body=2).work
    assert not signs(before, {1: Usage(output=30), 2: Usage()}, 10.0, known={1}, body=2).work

    def carries(count: int) -> bool:
        now = {1: Usage(), 2: Usage(), 9: Usage(read_and_written=count)}
        return bool(signs({**before, 9: Usage()}, now, 10.0, known={1}, body=2, guard=9).work)

    assert carries(16 << 20) and not carries(1 << 20)


def test_nothing_is_registered_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    stack_file.register(str(tmp_path / "no" / "such"), "0")
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_py_spy_adds_the_c_frames(tmp_path: Path, program: Program) -> None:
    if c_frames.program() is None:
        missing("py-spy is not installed.")
    register = f"stack_file.register({str(tmp_path)!r}, '0')\n"
    sleeps = program(register + "import ctypes\nprint('ready')\nwhile True: ctypes.CDLL(None).sleep(1000)")
    (record,) = collected(tmp_path, {sleeps: "rank 0"})
    stack = str(record["stack"]).splitlines()
    assert any(frame.startswith("sleep (libc") for frame in stack[:-1]), stack
    assert stack[-1].startswith("<module> at ")

"""A launch's processes: started as asked, ended with everything that came of them, and heard out when they fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from support.guard.launches import END_S, collected, process, run_launch
from support.processes import read_process, wait_gone

from metaflow_extensions.gang.core.gang.launch_plan import LaunchPlan
from metaflow_extensions.gang.core.guard.children import child as children
from metaflow_extensions.gang.core.guard.children.child import Child
from metaflow_extensions.gang.core.guard.children.launch import Launch
from metaflow_extensions.gang.core.guard.failure_record import EVIDENCE, PEER
from metaflow_extensions.gang.core.guard.loop.event_loop import Loop
from metaflow_extensions.gang.core.guard.processes import process_table
from metaflow_extensions.gang.core.guard.settings import Settings
from metaflow_extensions.gang.core.guard.text import LAST_LINES
from metaflow_extensions.gang.core.ranks.rank_report import REPORT

PYTHON = sys.executable


def until(path: Path) -> str:
    """What a process of the test writes into a file, as soon as it is there."""
    deadline = time.monotonic() + END_S
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)
    return path.read_text().strip()


def end_when(path: Path, then: Callable[[Launch], None] = Launch.end) -> Callable[[Loop, Launch], None]:
    """End the launch once ``path`` has been written, as a gang that stops does."""

    def watch(loop: Loop, launch: Launch) -> None:
        def look() -> None:
            if path.exists() and path.read_text().endswith("\n"):
                then(launch)
            else:
                loop.call_later(0.01, look)

        look()

    return watch


# -- starting ----------------------------------------------------------------------------------------------------------


def test_a_process_gets_its_own_environment_folder_and_session(tmp_path: Path) -> None:
    program = (
        "import json, os, sys; own_session = os.getsid(0) == os.getpid();"
        "print(json.dumps([dict(os.environ), os.getcwd(), own_session, sys.stdin.read()]))"
    )
    env = {"PATH": os.environ["PATH"], "ONLY": "this € \udcff"}
    with collected() as (out, finish):
        ended = run_launch(process(PYTHON, "-c", program, env=env, cwd=str(tmp_path)), out=out)
        environ, folder, leads, stdin = json.loads(finish())
    assert ended.results[0]["exit_code"] == 0
    marker = environ.pop(process_table.LAUNCH_MARKER)
    assert marker.startswith("test.")
    environ.pop("LC_CTYPE", None)  # Python's own, where the locale is C
    assert environ == env
    assert folder == str(tmp_path)
    assert leads, "Ctrl-C at the terminal is for the task, which tells the guard"
    assert stdin == ""


def test_signals_that_python_ignores_are_as_a_shell_would_leave_them() -> None:
    with collected() as (out, finish):
        run_launch(process("sh", "-c", "grep SigIgn /proc/self/status"), out=out)
        ignored = int(finish().split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1))
    assert not ignored & (1 << (signal.SIGXFSZ - 1))
    assert not ignored & (1 << (signal.SIGINT - 1))


@pytest.mark.parametrize(
    ("argv", "options", "code", "told"),
    [
        (["no-such-program"], {}, 127, "'no-such-program' could not be started: No such file or directory."),
        (["/etc/passwd"], {}, 126, "'/etc/passwd' could not be started: Permission denied."),
        (["true"], {"cwd": "/no/such"}, 126, "the folder '/no/such' cannot be its working folder: No such file"),
        (["echo", "x" * 200_000], {}, 126, "'echo' could not be started: Argument list too long."),
        (["echo", "a\0b"], {}, 126, "'echo' could not be started: embedded null byte."),
    ],
)
def test_a_program_that_cannot_be_started_is_told_in_a_sentence(
    argv: list[str], options: dict[str, Any], code: int, told: str
) -> None:
    with collected() as (out, finish):
        ended = run_launch(process(*argv, **options), out=out)
        shown = finish().decode()
    assert ended.results[0]["exit_code"] == code
    assert ended.failed is not None
    assert told in ended.failed.failure(0).detail
    assert f"[gang] {told}" in shown
    assert "Traceback" not in shown


def test_results_come_in_the_plan_s_order_and_one_failure_ends_the_others() -> None:
    slow = process("sleep", "1000", title="rank 0", rank=0)
    fails = process("sh", "-c", "echo why >&2; exit 3", title="rank 1", rank=1)
    ended = run_launch(slow, fails)
    assert [(r["title"], r["rank"], r["exit_code"]) for r in ended.results] == [
        ("rank 0", 0, -signal.SIGTERM),
        ("rank 1", 1, 3),
    ]
    assert ended.failed is not None
    failure = ended.failed.failure(4)
    assert (failure.node, failure.rank, failure.kind, failure.order) == (4, 1, "exit", EVIDENCE)
    assert failure.text == "rank 1 exited with code 3"
    assert failure.detail == "why"


def test_an_unchecked_failure_is_only_returned() -> None:
    quick, slow = process("sh", "-c", "exit 3"), process("sh", "-c", "sleep 0.3; exit 4")
    ended = run_launch(quick, slow, check=False)
    assert ended.failed is None
    assert [result["exit_code"] for result in ended.results] == [3, 4]


# -- ending ------------------------------------------------------------------------------------------------------------

TERMINATES = """
import os, signal, sys, time
def last(*_):
    print("cleaned up", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, last)
open(sys.argv[1], "w").write("ready\\n")
time.sleep(1000)
"""


def test_a_process_is_asked_to_end_before_it_is_killed(tmp_path: Path) -> None:
    with collected() as (out, finish):
        asked = process(PYTHON, "-c", TERMINATES, str(tmp_path / "up"))
        ended = run_launch(asked, out=out, grace=END_S, meanwhile=end_when(tmp_path / "up"))
        assert finish() == b"cleaned up\n"
    assert ended.results[0]["exit_code"] == 0
    assert ended.seconds < END_S / 2, "nobody waits for the rest of the grace"


def test_one_that_does_not_end_is_killed_after_its_grace_and_a_stopped_one_too(tmp_path: Path) -> None:
    deaf = "trap '' TERM; echo ready > $0; while :; do sleep 0.05; done"
    ended = run_launch(process("sh", "-c", deaf, str(tmp_path / "up")), grace=0.3, meanwhile=end_when(tmp_path / "up"))
    assert ended.results[0]["exit_code"] == -signal.SIGKILL
    assert ended.seconds >= 0.3

    def end_stopped(launch: Launch) -> None:
        os.kill(launch.children[0].pid, signal.SIGSTOP)
        launch.end()

    stopped = process(PYTHON, "-c", TERMINATES, str(tmp_path / "two"))
    ended = run_launch(stopped, grace=END_S, meanwhile=end_when(tmp_path / "two", end_stopped))
    assert ended.results[0]["exit_code"] == 0, "it got its SIGTERM, since it was continued"
    assert ended.seconds < END_S / 2


@pytest.mark.parametrize(
    "own, setting, seconds", [(None, 0.1, 0.1), (None, 3.0, 3.0), (1.0, 0.1, 1.0), (1.0, 3.0, 3.0), (0.2, 3.0, 0.2)]
)
def test_the_grace_is_the_setting_or_what_a_launcher_needs(
    monkeypatch: pytest.MonkeyPatch, own: float | None, setting: float, seconds: float
) -> None:
    monkeypatch.setattr(f"{Settings.__module__}._now", Settings({"kill_grace": setting}))
    plan = LaunchPlan(()) if own is None else LaunchPlan((), grace=own)
    assert Launch(Loop(), "test", plan.to_json(), 1, 2).grace == seconds


DESCENDANTS = r"""
import os, shutil, subprocess, sys, time
folder = sys.argv[1]
sleep = [shutil.which("sleep"), "1000"]
# Of a session of its own; deaf to SIGTERM; and an orphan two generations down.
procs = [
    subprocess.Popen(sleep, start_new_session=True),
    subprocess.Popen(["sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"]),
]
if sys.argv[2] == "stay":
    # Without the marker of the launch; it is known as long as it descends from its process.
    procs.append(subprocess.Popen(sleep, env={}, start_new_session=True))
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(folder + "/orphan", "w").write(f"{os.getpid()}\n")
        os.execv(sleep[0], sleep)
    os._exit(0)
os.wait()
while not os.path.exists(folder + "/orphan"):
    time.sleep(0.01)
open(folder + "/pids", "w").write(" ".join(str(p.pid) for p in procs) + "\n")
if sys.argv[2] == "stay":
    time.sleep(1000)
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize("how", ["stay", "0", "7"])
def test_everything_that_came_of_a_process_ends_with_the_launch(tmp_path: Path, how: str) -> None:
    meanwhile = end_when(tmp_path / "pids") if how == "stay" else None
    ended = run_launch(process(PYTHON, "-c", DESCENDANTS, str(tmp_path), how), meanwhile=meanwhile)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split() + (tmp_path / "orphan").read_text().split()]
    assert len(pids) == (4 if how == "stay" else 3)
    # Gone when the launch is over, not some time later.
    assert [str(found) for pid in pids if (found := read_process(pid)) and not found.zombie] == []
    assert ended.results[0]["exit_code"] == {"stay": -signal.SIGTERM, "0": 0, "7": 7}[how]


def test_other_processes_of_the_guard_are_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"], env={**os.environ, process_table.LAUNCH_MARKER: "another"}) as other:
        try:
            run_launch(process("true"))
            assert other.poll() is None
        finally:
            other.kill()


GUARD = """
import os, sys
sys.path.insert(0, sys.argv[1])
from guard.children.launch import Launch
from guard.loop.event_loop import Loop
loop = Loop()
plan = {"processes": [{"argv": ["sh", "-c", "echo $$; exec sleep 1000"], "env": dict(os.environ), "title": "command"}]}
launch = Launch(loop, "test.guard", plan, 1, 2)
loop.run()
"""


def test_the_kernel_ends_a_child_whose_guard_is_killed(tmp_path: Path) -> None:
    folder = str(Path(children.__file__).parents[2])
    with subprocess.Popen([PYTHON, "-I", "-S", "-c", GUARD, folder], stdout=subprocess.PIPE) as guard:
        assert guard.stdout is not None
        child = int(guard.stdout.readline())
        guard.kill()
    assert wait_gone([child], END_S) == []


# -- what a failed process says ----------------------------------------------------------------------------------------


def failed(*argv: str, peer_lost: Sequence[str] = (), **options: Any) -> Child:
    ended = run_launch(process(*argv, **options), peer_lost=peer_lost)
    assert ended.failed is not None
    return ended.failed


def test_a_signal_is_told_by_its_name_and_a_traceback_from_the_output() -> None:
    failure = failed("sh", "-c", "echo before; kill -SEGV $$", title="rank 2", rank=2).failure(1)
    assert (failure.kind, failure.text, failure.detail) == ("signal", "rank 2 was killed by SIGSEGV", "before")
    child = failed(PYTHON, "-c", "print('x\\n' * 100); raise ValueError('deliberate')")
    assert child.result()["exit_code"] == 1
    detail = child.failure(0).detail
    assert detail.startswith("Traceback (most recent call last):") and detail.endswith("ValueError: deliberate")


def test_a_traceback_is_whole_though_stdout_came_in_between() -> None:
    says = "echo 'Traceback (most recent call last):' >&2; printf ValueErr >&2; sleep 0.2; echo shown; sleep 0.2; "
    detail = failed("sh", "-c", says + "echo 'or: deliberate' >&2; exit 1").failure(0).detail
    assert detail == "Traceback (most recent call last):\nValueError: deliberate"


def test_without_a_traceback_the_last_lines_are_told() -> None:
    detail = failed("sh", "-c", "seq 1000; exit 1").failure(0).detail
    assert detail.splitlines() == [str(number) for number in range(1000 - LAST_LINES + 1, 1001)]


STACK = {"py_callstack": "Traceback: of torch", "timestamp": "1"}
TORCH_S = {"message": {"message": "ValueError: in torch", "extraInfo": STACK}}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (json.dumps(TORCH_S), "Traceback: of torch"),
        (json.dumps({"message": {"message": "no stack", "extraInfo": {"py_callstack": ""}}}), "no stack"),
        (json.dumps({"message": "plain text"}), "plain text"),
        ("", "said on stderr"),
        ('{"message": {"mess', "said on stderr"),
        ("[1, 2]", "said on stderr"),
        ('{"message": {"extraInfo": 7}}', "said on stderr"),
        ('{"message": null}', "said on stderr"),
    ],
)
def test_an_error_file_is_read_where_it_is_one(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "error.json"
    path.write_text(content)
    child = failed("sh", "-c", "echo said on stderr >&2; exit 1", error_file=str(path))
    assert child.failure(0).detail == told
    assert child.result()["error_file"] == str(path)


def test_the_error_file_tells_when_it_failed_even_where_the_process_took_its_time_to_end(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    program = f"echo '{json.dumps({'message': 'early'})}' > {path}; sleep 0.5; exit 1"
    started = time.time()
    failure = failed("sh", "-c", program, error_file=str(path)).failure(0)
    assert failure.detail == "early"
    assert failure.time - started < 0.45
    # One of an earlier attempt is no later than the process's own end.
    path.write_text(json.dumps({"message": "late"}))
    os.utime(path, (time.time() + 1000, time.time() + 1000))
    failure = failed("sh", "-c", "exit 1", error_file=str(path)).failure(0)
    assert failure.time <= time.time()


def test_an_error_about_a_peer_is_marked_as_such_unless_the_process_died_of_something_else() -> None:
    patterns = [r"Connection (reset|closed) by peer"]
    says = "echo 'RuntimeError: Connection closed by peer [10.0.0.1]' >&2; "
    cases = [("exit 1", PEER), ("kill -ABRT $$", PEER), ("kill -KILL $$", EVIDENCE)]
    for end, order in cases:
        assert failed("sh", "-c", says + end, peer_lost=patterns).failure(0).order == order, end
    assert failed("sh", "-c", says + "exit 1").failure(0).order == EVIDENCE
    assert failed("sh", "-c", "exit 1", peer_lost=patterns).failure(0).order == EVIDENCE


def test_an_agent_s_report_names_the_rank_that_failed_first() -> None:
    report = r"rank\s*: (?P<rank>\d+).*exitcode\s*: (?P<exit_code>-?\d+)"
    child = failed("sh", "-c", "echo 'rank : 5'; echo 'exitcode : -11'; exit 1", title="torchrun", report=report)
    assert child.failure(0).text == "rank 5 was killed by SIGSEGV"
    assert child.result()["rank"] == 5
    silent = failed("sh", "-c", "exit 1", title="torchrun", report=report)
    assert silent.failure(0).text == "torchrun exited with code 1"


def test_of_several_reports_that_of_the_rank_which_blames_no_peer_counts(tmp_path: Path) -> None:
    """A rank that lost its peer may be told of a moment before the peer."""
    errors = str(tmp_path / "error-{rank}.json")
    script = "; ".join(
        (
            f'echo \'{{"message": "Connection closed by peer"}}\' > {errors.format(rank=2)}',
            f'echo \'{{"message": "ValueError: of rank 3"}}\' > {errors.format(rank=3)}',
            "echo '[rank2]: Connection closed by peer' >&2",
            "echo '[gang] rank 2 (node 1) ended with 1' >&2",
            "echo '[gang] rank 3 (node 1) ended with 1' >&2",
            "exit 1",
        )
    )
    told = {"title": "deepspeed", "report": REPORT, "error_file": errors, "peer_lost": ["Connection closed"]}
    child = failed("sh", "-c", script, **told)
    failure = child.failure(1)
    assert (failure.text, failure.order) == ("rank 3 exited with code 1", EVIDENCE)
    assert failure.detail == "ValueError: of rank 3" and child.result()["rank"] == 3

    alone = failed("sh", "-c", script.replace("ValueError: of rank 3", "Connection closed, too"), **told).failure(1)
    assert (alone.text, alone.order) == ("rank 2 exited with code 1", PEER)


def test_a_report_without_ranks_names_the_process_by_its_title() -> None:
    report = r"ended: (?P<title>\w+) \[(?P<exit_code>-?\d+)\]"
    trace = 'Traceback (most recent call last):\n  File "x", line 1\nKeyError: 1'
    script = f"echo '{trace}' >&2; echo 'ended: store [1]'; exit 3"
    child = failed("sh", "-c", script, title="the server", report=report)
    failure = child.failure(2)
    assert (failure.text, failure.rank, failure.node) == ("store exited with code 1", None, 2)
    assert failure.detail == trace, "what it left is not looked for as a rank's"
    assert (child.result()["title"], child.result()["rank"], child.result()["exit_code"]) == ("store", None, 1)

    killed = failed("sh", "-c", "echo 'ended: store [-9]'; exit 1", title="the server", report=report)
    assert killed.failure(0).text.startswith("store was killed by SIGKILL")
    silent = failed("sh", "-c", "exit 1", title="the server", report=report)
    assert silent.failure(0).text == "the server exited with code 1"


def test_a_foreign_program_on_the_port_is_told_from_other_failures() -> None:
    taken: list[bool] = []
    for says in ("Address already in use", "out of memory"):
        ended = run_launch(
            process("sh", "-c", f"echo {says} >&2; exit 1"),
            port_taken="[Aa]ddress already in use",
            meanwhile=lambda loop, launch: setattr(
                launch, "on_failure", lambda launch, child: (taken.append(launch.port_is_taken()), launch.end())
            ),
        )
        assert ended.failed is not None
    assert taken == [True, False]


def test_a_process_that_has_raised_but_not_ended_is_heard_when_the_gang_stops(tmp_path: Path) -> None:
    """Its exit handlers may take seconds, in which its peers fail for want of it: it is the cause all the same."""
    path = tmp_path / "error.json"
    words: list[Any] = []
    since = time.time()

    def listen(launch: Launch) -> None:
        (child,) = launch.children
        words.append(child.evidence_before_end(3, since))
        words.append(child.evidence_before_end(3, time.time() + 1000))
        child.peer_lost.append("deliberate")
        words.append(child.evidence_before_end(3, since))
        launch.end()

    program = 'echo \'{"message": "ValueError: deliberate"}\' > $0; sleep 1000'
    run_launch(
        process("sh", "-c", program, str(path), error_file=str(path), title="rank 1", rank=1),
        meanwhile=end_when(path, listen),
    )
    assert (words[0].node, words[0].rank) == (3, 1)
    assert (words[0].text, words[0].detail) == ("rank 1 raised", "ValueError: deliberate")
    assert words[1:] == [None, None], "an error about a peer, or one of an earlier attempt, is no evidence"


GLOO = "RuntimeError: Connection closed by peer"


def errors(path: Path, text: str, **ours: Any) -> str:
    """Shell that writes an error file as rank_main does, whole or not at all."""
    message = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": "1"}}
    record = json.dumps({"message": message, "gang": {"exit_code": 1, **ours}})
    return f"echo '{record}' > {path}.part; mv {path}.part {path}; "


def test_a_rank_that_is_stopped_on_its_way_out_ended_as_it_wrote_down(tmp_path: Path) -> None:
    """What it wrote down tells, and not the signal that cut short its exit handlers."""
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    slow = process("sh", "-c", errors(one, GLOO) + "sleep 1000", title="rank 2", rank=2, error_file=str(one))
    waits = f"while [ ! -e {one} ]; do sleep 0.01; done; exit 5"
    ends = process("sh", "-c", waits, title="rank 3", rank=3, error_file=str(two), records_exceptions=True)
    ended = run_launch(slow, ends, peer_lost=["Connection closed by peer"])
    assert [result["exit_code"] for result in ended.results] == [1, 5]
    assert ended.failed is not None and ended.failed.rank == 3
    assert ended.failed.failure(1).text == (
        "rank 3 exited with code 5 without an exception, as by os._exit() or the exit() of a C library"
    )


def test_what_sys_exit_was_called_with_is_told_with_what_was_printed_before(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    how = {"exit_code": 2, "how": "called sys.exit(2)", "printed": True}
    program = "echo usage: --x is missing >&2; " + errors(path, "Traceback: SystemExit: 2", **how) + "exit 2"
    child = failed("sh", "-c", program, title="rank 1", rank=1, error_file=str(path), records_exceptions=True)
    told = child.failure(0)
    assert (told.text, told.order) == ("rank 1 called sys.exit(2)", EVIDENCE)
    assert told.detail == "usage: --x is missing\nTraceback: SystemExit: 2"
    assert child.result()["ended"] == "called sys.exit(2)"


def test_an_abort_by_nccls_watchdog_is_a_complaint_about_a_peer_and_a_caught_exception_is_none(tmp_path: Path) -> None:
    says = "echo 'Traceback (most recent call last):' >&2; echo 'ValueError: caught' >&2; echo 'Watchdog caught' >&2; "
    options = {"error_file": str(tmp_path / "error.json"), "records_exceptions": True, "peer_lost": ["Watchdog caught"]}
    told = failed("sh", "-c", says + "kill -ABRT $$", title="rank 1", rank=1, **options).failure(0)
    assert told.order == PEER and "was aborted (SIGABRT)" in told.text
    assert told.detail.endswith("Watchdog caught")


def test_ranks_that_ended_with_code_0_are_known_by_their_end_or_their_mark(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    marked = f"touch {path}.ended; trap 'exit 0' TERM; while :; do sleep 0.05; done"
    ended = run_launch(
        process("true", title="rank 0", rank=0),
        process("sh", "-c", marked, title="rank 1", rank=1, error_file=str(path)),
        process("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done", title="rank 2", rank=2),
        process(
            "sh", "-c", f"while [ ! -e {path}.ended ]; do sleep 0.01; done; sleep 0.3; exit 1", title="rank 3", rank=3
        ),
        grace=END_S,
    )
    assert list(ended.ended_well or ()) == [0, 1], "rank 2 ended because it was stopped"


def test_what_ranks_leave_once_they_are_stopped_is_no_cause(tmp_path: Path) -> None:
    """A file has the time of the kernel's last tick, which may be before the stop."""

    def stopped(rank: int, leaves: str) -> dict[str, Any]:
        script = f'trap "{leaves}" TERM; sleep 1000 & touch {tmp_path}/ready-{rank}; wait'
        return process("sh", "-c", script, title=f"rank {rank}", rank=rank, error_file=str(tmp_path / f"{rank}.json"))

    raising = [stopped(rank, f". {tmp_path}/raise-{rank}; exit 1") for rank in range(6)]
    for rank in range(6):
        (tmp_path / f"raise-{rank}").write_text(errors(tmp_path / f"{rank}.json", "RuntimeError: told to end"))
    ending = [stopped(rank, f": > {tmp_path}/{rank}.json.ended; exit 0") for rank in range(6, 12)]
    waits = f"while [ $(ls {tmp_path} | grep -c ready) -lt 12 ]; do sleep 0.01; done; kill -KILL $$"
    dies = process("sh", "-c", waits, title="rank 12", rank=12)
    ended = run_launch(*raising, *ending, dies, grace=END_S)
    assert ended.failed is not None and ended.failed.failure(0).text == "rank 12 was killed by SIGKILL (out of memory?)"
    assert ended.ended_well == {}


def test_what_a_process_has_left_behind_may_finish_by_itself(tmp_path: Path) -> None:
    """As a program does that reads the end of a pipe from it: what it has to write is written."""
    late = f"(sleep 0.3; echo whole > {tmp_path}/late) & exit 0"
    ended = run_launch(process("sh", "-c", late))
    assert ended.results[0]["exit_code"] == 0
    assert (tmp_path / "late").read_text() == "whole\n"
    endless = run_launch(process("sh", "-c", "sleep 1000 & exit 0"))
    assert 1.0 <= endless.seconds < END_S / 2, "a daemon ends after a second"

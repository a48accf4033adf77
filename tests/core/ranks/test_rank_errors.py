"""What a rank leaves of its end: a traceback that begins in the user's code, and a record, whatever he has raised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - makes the package importable
import pytest

from metaflow_extensions.gang.core.guard.rank_reports.error_file import ERROR_FILE_LIMIT, read_error_file
from metaflow_extensions.gang.core.guard.rank_reports.rank_end import how_a_rank_ended
from metaflow_extensions.gang.core.guard.tracebacks import MESSAGE_LIMIT
from metaflow_extensions.gang.core.ranks.functions import RANK_MAIN, write_call

TIMEOUT_S = 60.0

MODULE = """
import asyncio, sys, threading

class Mine(BaseException): pass
class Mute(Exception):
    def __str__(self): raise RuntimeError("str")
    __repr__ = __str__
class Value:
    def __init__(self, error): self.error = error
    def __reduce__(self): raise self.error

def interrupted(): raise KeyboardInterrupt
def generator_exit(): raise GeneratorExit("a text")
def cancelled(): raise asyncio.CancelledError("a text")
def mine(): raise Mine("a text")
def mute(): raise Mute
def exit_text(): sys.exit("a text")
def exit_mute(): sys.exit(Mute())
def long_text(): raise ValueError("begin " + "x" * 200_000)
def huge(): raise ValueError("begin " + "x" * 20_000_000)
def no_utf8(): raise ValueError("a \\ud800 \\0 \\x1b[31m text")
def chained():
    try:
        1 / 0
    except ZeroDivisionError as error:
        raise RuntimeError("a text") from error
def returns_lock(): return threading.Lock()
def returns_value(): return Value(TypeError("no"))
def returns_exit(): return Value(SystemExit(3))
def returns_interrupt(): return Value(KeyboardInterrupt())
"""

HOW_INTERRUPTED = "was interrupted (KeyboardInterrupt, as by SIGINT)"
RAISED = "exited with code 1"
SENT = "that cannot be pickled"

RAISES = {
    "interrupted": (-2, HOW_INTERRUPTED, "KeyboardInterrupt"),
    "generator_exit": (1, RAISED, "GeneratorExit: a text"),
    "cancelled": (1, RAISED, "CancelledError: a text"),
    "mine": (1, RAISED, "Mine: a text"),
    "mute": (1, RAISED, "Mute: <exception str() failed>"),
    "exit_text": (1, "called sys.exit('a text')", "SystemExit: a text"),
    "exit_mute": (1, "called sys.exit(<exception repr() failed>)", "SystemExit: <exception str() failed>"),
    "long_text": (1, RAISED, f"ValueError: begin {'x' * (MESSAGE_LIMIT - 22)} ..."),
    "huge": (1, RAISED, f"ValueError: begin {'x' * (MESSAGE_LIMIT - 22)} ..."),
    "no_utf8": (1, RAISED, r"ValueError: a \ud800 \x00 \x1b[31m text"),
    "chained": (1, RAISED, "RuntimeError: a text"),
}
RETURNS = {
    "returns_lock": (1, RAISED, f"BadReturn: returns_lock() returned a _thread.lock {SENT} (cannot pickle '_thread"),
    "returns_value": (1, RAISED, f"BadReturn: returns_value() returned a called.Value {SENT} (no). Return plain data"),
    "returns_exit": (1, RAISED, f"BadReturn: returns_exit() returned a called.Value {SENT} (3). Return plain data"),
    "returns_interrupt": (-2, HOW_INTERRUPTED, "KeyboardInterrupt"),
}
CASES = [("script", case) for case in RAISES] + [("function", case) for case in (*RAISES, *RETURNS)]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-u", RANK_MAIN, *arguments],
        cwd=folder,
        env={**os.environ, "TORCHELASTIC_ERROR_FILE": str(folder / "error.json"), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "called.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "called", raising=False)
    return __import__("called")


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_the_traceback_begins_in_the_users_code(kind: str, case: str, called: Any, tmp_path: Path) -> None:
    if kind == "function":
        ended = run(tmp_path, write_call(getattr(called, case), None, str(tmp_path)).path)
    else:
        (tmp_path / "script.py").write_text(f"import called\ncalled.{case}()\n")
        ended = run(tmp_path, "--script", "script.py")
    code, how, message = {**RAISES, **RETURNS}[case]
    assert ended.returncode == code, ended.stderr[-2_000:]
    path = str(tmp_path / "error.json")
    left = read_error_file(path)
    assert left.message.startswith(message) and len(left.message) <= MESSAGE_LIMIT
    assert how_a_rank_ended(code, left, left.text, True) == how
    assert os.path.getsize(path) < ERROR_FILE_LIMIT
    first = next((line for line in left.text.splitlines() if line.startswith("  File ")), "")
    assert str(tmp_path) in first or case == "returns_lock"
    told = json.loads(Path(path).read_text())["message"]["extraInfo"]["py_callstack"]
    shown = {"exit_text": "a text\n", "exit_mute": "\n"}.get(case, told.encode("utf-8", "backslashreplace").decode())
    assert ended.stderr == shown
    for text in (ended.stderr, told):
        assert "rank_main" not in text and "rank_errors" not in text, text[:5_000]


def test_a_module_that_ends_the_interpreter_is_told(called: Any, tmp_path: Path) -> None:
    call = write_call(called.mine, None, str(tmp_path))
    (tmp_path / "called.py").write_text("import sys\nsys.exit(0)\n")
    ended = run(tmp_path, call.path)
    left = read_error_file(str(tmp_path / "error.json"))
    assert ended.returncode == 1 and "rank_main" not in ended.stderr
    assert left.message.startswith(
        "RuntimeError: A module of mine() or of its arguments ended the interpreter (exit code 0)"
    )
    assert 'called.py", line 2' in left.text


def test_a_users_hook_is_called_once_for_an_interrupt(tmp_path: Path) -> None:
    hook = "import sys, traceback\nsys.excepthook = lambda *error: print(*traceback.format_exception(*error))\n"
    (tmp_path / "script.py").write_text(f"{hook}raise KeyboardInterrupt\n")
    ended = run(tmp_path, "--script", "script.py")
    assert (ended.returncode, ended.stdout.count("KeyboardInterrupt\n"), ended.stderr) == (-2, 2, "")
    assert "rank_main" not in ended.stdout

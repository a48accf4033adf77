"""A script run by rank_main.py is a script run by Python, but for its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import metaflow  # noqa: F401 - makes the package importable
import pytest

from metaflow_extensions.gang.core.ranks.functions import RANK_MAIN

TIMEOUT_S = 60.0

LOOKS_AROUND = '''
"""Its docstring."""
from __future__ import annotations
import json, multiprocessing, os, sys

def double(x: int | None):
    return 2 * x

if __name__ == "__main__":
    main = sys.modules["__main__"]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        doubled = pool.map(double, [1, 2])
    print(json.dumps({
        "argv": sys.argv, "path0": sys.path[0], "file": main.__file__, "spec": repr(main.__spec__), "doc": __doc__,
        "names": sorted(vars(main)), "loader": type(__loader__).__name__, "package": repr(main.__package__),
        "doubled": doubled, "flags": str(sys.flags), "executable": sys.executable, "double": double.__module__,
    }))
'''


def run(argv: list[str], folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-u", *argv],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def both(script: str, folder: Path, *arguments: str) -> list[subprocess.CompletedProcess[str]]:
    return [run([*start, script, *arguments], folder) for start in ([], [RANK_MAIN, "--script"])]


def test_a_script_sees_the_same(tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a folder" / "it's.py").write_text(LOOKS_AROUND)
    plain, ours = both("a folder/it's.py", tmp_path, "--x", "a'; echo foo", "")
    assert plain.returncode == ours.returncode == 0, ours.stderr
    assert json.loads(ours.stdout) == json.loads(plain.stdout)


@pytest.mark.parametrize(
    "script",
    [
        "import sys; print('out'); print('err', file=sys.stderr)",
        "raise SystemExit",
        "raise SystemExit(7)",
        "raise SystemExit('a text')",
        "import sys; sys.exit(0)",
        "def f():\n    raise ValueError('x')\ntry:\n    f()\nexcept ValueError as e:\n    raise KeyError('y') from e",
        "1 +",
        "import atexit; atexit.register(print, 'at exit'); atexit.register(lambda: 1 / 0)",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
        "import sys; sys.stdout = open(1, 'w', buffering=4096, closefd=False); print('buffered')",
        "import ctypes; ctypes.CDLL(None).puts(b'in C, buffered')",
        "import os; os.kill(os.getpid(), 15)",
        "import sys; sys.excepthook = lambda *error: print('hook', error[0].__name__); raise ValueError",
        "import sys; sys.excepthook = lambda *error: print('hook', error[0].__name__); raise KeyboardInterrupt",
        "import atexit, sys; atexit.register(lambda: print(sys.last_type)); raise KeyboardInterrupt('a text')",
        "def f():\n    raise GeneratorExit('a text')\nf()",
        "class Mute(Exception):\n    def __str__(self):\n        raise ValueError\nraise Mute",
    ],
)
def test_a_script_ends_the_same(tmp_path: Path, script: str) -> None:
    (tmp_path / "script.py").write_text(script)
    plain, ours = both("script.py", tmp_path)
    assert (ours.returncode, ours.stdout) == (plain.returncode, plain.stdout)
    # An exit handler's own traceback is told in other words.
    assert ours.stderr == plain.stderr or ("ZeroDivisionError" in ours.stderr and "ZeroDivisionError" in plain.stderr)


def test_a_folder_with_a_main_runs(tmp_path: Path) -> None:
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "__main__.py").write_text("import sys; print(sys.argv, __name__)")
    plain, ours = both("program", tmp_path, "x")
    assert (ours.returncode, ours.stdout) == (plain.returncode, plain.stdout) == (0, plain.stdout)


def test_an_exception_is_written_down(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("def f():\n    raise ValueError('written down')\nf()\n")
    error_file = tmp_path / "error.json"
    ended = run([RANK_MAIN, "--script", "script.py"], tmp_path, TORCHELASTIC_ERROR_FILE=str(error_file))
    assert ended.returncode == 1
    told = json.loads(error_file.read_text())["message"]["extraInfo"]["py_callstack"]
    assert told == ended.stderr and "in f" in told and "rank_main" not in told

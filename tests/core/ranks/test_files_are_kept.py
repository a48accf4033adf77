"""Whatever a script or a function has open when it ends is on disk as it is after plain Python, however it ends."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import metaflow  # noqa: F401 - makes the package importable
import pytest
from support.flows import FlowRunner
from support.paths import TESTS

from metaflow_extensions.gang.core.ranks.functions import RANK_MAIN

SAMPLE = TESTS / "samples" / "open_files.py"

TIMEOUT_S = 60.0

FLOW_S = 120.0
"""For a flow whose ranks import a framework, on a machine that is busy with other tests."""

ENDS = ("success", "exit0", "exit1", "text", "raise")


def contents(folder: Path) -> dict[str, object]:
    """Every file below ``folder``, once what was piped into ``cat`` has arrived, which nobody waits for."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (folder / "piped").read_bytes() and time.monotonic() < deadline:
        time.sleep(0.01)
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = "folder"
        elif name.startswith("tensorboard"):
            found["tensorboard"] = path.stat().st_size  # its name has the time, its first record too
        elif name.endswith(".sqlite"):
            with sqlite3.connect(path) as table:
                found[name] = table.execute("select x from t order by x").fetchall()
            table.close()
        else:
            found[name] = path.read_bytes()
    return found


def leaves(folder: Path, argv: list[str], **env: str) -> tuple[int, dict[str, object]]:
    ended = subprocess.run(
        [sys.executable, *argv], env={**os.environ, **env}, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    return ended.returncode, contents(folder)


def fresh(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_files_are_as_plain_python_leaves_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    if end == "raise" and importlib.util.find_spec("tensorboardX"):
        monkeypatch.setenv("TENSORBOARD", "1")
    plain, script, called = (fresh(tmp_path, name) for name in ("plain", "script", "function"))
    expected = leaves(plain, [str(SAMPLE), str(plain), end])
    assert expected[0] == (0 if end in ("success", "exit0") else 1)
    assert expected[1]["text.csv"] == b"1,2,3\n" * 5 and expected[1]["deleted"] == b"finalized\n", "of the test itself"
    errors = {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")}
    assert leaves(script, [RANK_MAIN, "--script", str(SAMPLE), str(script), end], **errors) == expected

    call = (
        "import sys; sys.path.insert(0, sys.argv[1]); import metaflow, open_files;"
        "from metaflow_extensions.gang.core.ranks.functions import write_call;"
        "print(write_call(open_files.work, sys.argv[2:4], sys.argv[4]).path)"
    )
    (tmp_path / "call").mkdir()
    written = [sys.executable, "-c", call, str(SAMPLE.parent), str(called), end, str(tmp_path / "call")]
    path = subprocess.run(written, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout.strip()
    assert leaves(called, [RANK_MAIN, path], **errors) == expected


QUICK = """
import sys; sys.path.insert(0, sys.argv[1])
import metaflow, open_files
from metaflow_extensions.gang.core.ranks import quick_exit
open_files.open_everything(sys.argv[2])
quick_exit.at_exit(1)
"""


def test_where_a_framework_cannot_be_finalized_files_are_written_out_all_the_same(tmp_path: Path) -> None:
    plain, quick = fresh(tmp_path, "plain"), fresh(tmp_path, "quick")
    _, expected = leaves(plain, [str(SAMPLE), str(plain), "success"])
    code, found = leaves(quick, ["-c", QUICK, str(SAMPLE.parent), str(quick)])
    # Only what is written by __del__ of a global is not, and what a frame of this test's script does not open.
    for name in ("deleted", "deleted-in-a-cycle", "local"):
        expected.pop(name), found.pop(name, None)
    assert (code, found) == (1, expected)


LEAVES = """
import subprocess
from metaflow import FlowSpec, current, gang, step

class Leaves(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang
    @step
    def work(self):
        # Ends a moment after the task; SIGTERM would end it before.
        wait = "while grep -q '^State:.[RSD]' /proc/$0/status; do sleep 0.05; done; sleep 0.2"
        command = f"{wait}; echo whole > left-by-{current.gang.node_index}"
        subprocess.Popen(["sh", "-c", command, str(__import__("os").getpid())])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Leaves()
"""


@pytest.mark.slow
def test_what_a_body_leaves_running_may_finish(flow_run: FlowRunner) -> None:
    run = flow_run(LEAVES).ok(FLOW_S)
    for node in (0, 1):
        path = run.folder / f"left-by-{node}"
        deadline = time.monotonic() + TIMEOUT_S
        while not (path.exists() and path.read_text()) and time.monotonic() < deadline and run.left(0):
            time.sleep(0.01)
        assert path.exists() and path.read_text() == "whole\n", f"node {node}"


FLOW = """
import os, sys
from metaflow import FlowSpec, current, gang, deepspeed, mpi, step, tensorflow, torchrun

import open_files

OUT, END = os.environ["OUT"], os.environ["END"]

def at(name):
    os.makedirs(os.path.join(OUT, name))
    return [os.path.join(OUT, name), END]

class Keeps(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=1)

    @{decorator}
    @step
    def work(self):
        {script}
        {function}
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Keeps()
"""

LAUNCHERS = {
    "direct": ("torchrun", 'current.torch.run(None, "open_files.py", at("script"))'),
    "agent": ("torchrun", 'current.torch.run({"max_restarts": 0}, "open_files.py", at("script"))'),
    "deepspeed": (
        "deepspeed",
        'current.deepspeed.run(["--num_gpus=1", "--no_local_rank"], "open_files.py", at("script"))',
    ),
    "tensorflow": ("tensorflow", 'current.tensorflow.run("open_files.py", at("script"))'),
    "mpi": ("mpi", 'current.mpi.run(["-n", "1"], [sys.executable, "open_files.py", *at("script")])'),
    "gang": ("gang", 'current.gang.run([sys.executable, "open_files.py", *at("script")])'),
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ["success", "exit1", "raise"])
@pytest.mark.parametrize(
    "launcher", ["direct", *(pytest.param(name, marks=pytest.mark.big) for name in list(LAUNCHERS)[1:])]
)
def test_files_are_as_plain_python_leaves_them_under_every_launcher(
    flow_run: FlowRunner, tmp_path: Path, launcher: str, end: str
) -> None:
    decorator, script = LAUNCHERS[launcher]
    has_functions = launcher not in ("mpi", "gang")
    function = script.replace('"open_files.py"', "open_files.work").replace("script", "function")
    source = FLOW.replace("{decorator}", decorator).replace("{script}", script)
    source = source.replace("{function}", function if has_functions else "pass")
    plain, out = fresh(tmp_path, "plain"), fresh(tmp_path, "out")
    expected = leaves(plain, [str(SAMPLE), str(plain), end])[1]
    environment = {"OUT": str(out), "END": end}
    run = flow_run(source, env=environment, files={"open_files.py": SAMPLE.read_text()})
    if end == "success":
        run.ok(FLOW_S)
        assert not has_functions or contents(out / "function") == expected
    else:
        run.fails(FLOW_S)
    assert contents(out / "script") == expected

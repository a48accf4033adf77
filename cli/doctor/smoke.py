"""The doctor's smoke test: a flow of two local nodes for each launcher, two flows at a time, in a temporary folder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from .findings import BROKEN, OK, Finding
from .smoke_flows import SMOKES, Smoke

SMOKE = "Two-node smoke test"

AT_ONCE = 2

FLOW_S = 180.0
"""For one flow: several times what the longest, Ray's, takes on two quiet cores."""

_END_S = 15.0
"""For a flow that was interrupted: a gang ends within some seconds."""

_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (?:\[\d+/\w+/\w+ \(pid \d+\)\] ?)?")
_OF_NODE = re.compile(r"^\[node \d+\] ?")

_SHOWN_LINES = 12


def smoke_test(launchers: Sequence[str], report: Callable[[Finding], None]) -> list[Finding]:
    """Run the flow of each of these launchers, and call ``report`` with each finding as it comes.

    Ctrl-C and SIGTERM end the flows, too: KeyboardInterrupt is raised when they are over.
    """
    wanted = [smoke for smoke in SMOKES if smoke.launcher in launchers]
    found: list[Finding] = []
    runs = _Runs()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="metaflow-gang-doctor-") as folder, ThreadPoolExecutor(AT_ONCE) as pool:
            flows = [pool.submit(_run, smoke, Path(folder) / f"{n}", runs) for n, smoke in enumerate(wanted)]
            try:
                for done in as_completed(flows):
                    report(done.result())
                    found.append(done.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                runs.interrupt()
                raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return found


class _Runs:
    """The runs that have been started, so that all can be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: list[subprocess.Popen[bytes]] = []
        self._is_over = False

    def start(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start one, in a session of its own: Ctrl-C reaches the doctor alone."""
        with self._lock:
            run = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, **options)
            self._started.append(run)
            if self._is_over:
                run.send_signal(signal.SIGINT)
            return run

    def interrupt(self) -> None:
        """End all, as by Ctrl-C, which ends their gangs."""
        with self._lock:
            self._is_over = True
            for run in self._started:
                run.send_signal(signal.SIGINT)  # of one that has ended nothing is signalled


def _run(smoke: Smoke, folder: Path, runs: _Runs) -> Finding:
    folder.mkdir()
    (folder / "smoke.py").write_text(smoke.flow())
    if smoke.ranks:
        (folder / "ranks.py").write_text(smoke.ranks)
    begun = time.monotonic()
    with open(folder / "output", "w+b") as output:
        run = runs.start(
            [sys.executable, "smoke.py", "run"],
            cwd=folder,
            env=environment(os.environ, folder),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        is_late = False
        try:
            run.wait(FLOW_S)
        except subprocess.TimeoutExpired:
            is_late = True
        finally:
            _end(run)
        output.seek(0)
        lines = [_STAMP.sub("", line).rstrip() for line in output.read().decode("utf-8", "replace").splitlines()]
    took = f"{time.monotonic() - begun:.0f} s"
    if run.returncode == 0:
        return Finding(SMOKE, smoke.launcher, OK, f"two nodes, {took}")
    found = f"not done after {took}" if is_late else f"failed after {took}"
    shown = _failure(lines)
    advice = "Below is the end of what it printed." if shown else ""
    return Finding(SMOKE, smoke.launcher, BROKEN, found, advice, "\n".join(shown))


def _end(run: subprocess.Popen[bytes]) -> None:
    """End a run that is still there: as by Ctrl-C, which ends its gang, and then by force."""
    if run.poll() is None:
        run.send_signal(signal.SIGINT)
        try:
            run.wait(_END_S)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()


def environment(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """That of a run: Metaflow with nothing but a local datastore in ``folder``; the settings of gangs as they are."""
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(("METAFLOW_", "MF_")) or name.startswith("METAFLOW_GANG_")
    }
    return {
        **kept,
        "METAFLOW_HOME": str(folder / "home"),
        "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(folder),
        "METAFLOW_DEFAULT_DATASTORE": "local",
        "METAFLOW_DEFAULT_METADATA": "local",
        "METAFLOW_USER": "doctor",
    }


def _failure(lines: list[str]) -> list[str]:
    """The gang's report of its first failure, which some node prints, else the last lines before Metaflow's own."""
    for at, line in enumerate(lines):
        if "The first failure was on" in line:
            label = _label(line)
            report = [later[len(label) :] for later in lines[at:] if _label(later) == label]
            return textwrap.dedent("\n".join(report[:_SHOWN_LINES])).rstrip().splitlines()
    end = lines.index("Task failed.") if "Task failed." in lines else len(lines)
    return lines[max(0, end - _SHOWN_LINES) : end]


def _label(line: str) -> str:
    """ "[node 1] ", where a line begins with that."""
    found = _OF_NODE.match(line)
    return found[0] if found else ""

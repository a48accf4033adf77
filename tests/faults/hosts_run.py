"""A cell whose nodes are hosts with a network between them; see :mod:`support.hosts`."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import cell_run
import injector
import oracle
from cells import Cell
from support.processes import send_signal
from support.remote import RemoteGang, RemoteTask, remote_gang

if TYPE_CHECKING:
    from cell_run import Result

HERE = Path(__file__).parent


def run(cell: Cell, folder: Path, delay: float, result: Result) -> None:
    """Run it; what is wrong goes to ``result``."""
    place = injector.Place(folder)
    for name in ("acts.py", "program.py"):
        (folder / name).write_text((HERE / name).read_text())
    variables = {**cell_run.environment(cell, folder), "NODES": str(cell.nodes)}
    outer = dict(os.environ)
    os.environ.update(variables)
    try:
        with remote_gang(folder, (HERE / "flow.py").read_text(), cell.nodes) as gang:
            tasks: list[RemoteTask] = []
            try:
                _strike(cell, gang, tasks, place, delay, result)
            except injector.NotReached as error:
                result.problems.append(str(error))
            finally:
                if cell.row.what == "freeze":
                    # nsenter stops where its child does, and could not collect it.
                    tasks[cell.node]._process.send_signal(signal.SIGCONT)
                    gang.kill_host(cell.node)
    finally:
        os.environ.clear()
        os.environ.update(outer)


def _strike(
    cell: Cell, gang: RemoteGang, tasks: list[RemoteTask], place: injector.Place, delay: float, result: Result
) -> None:
    tasks += gang.start_all(**cell_run.SILENCE)
    place.await_marks(
        injector.wanted(cell), lambda: any(t._process.poll() is not None for t in tasks), cell_run.START_S
    )
    time.sleep(delay)
    struck = time.monotonic()
    _do(cell, gang, tasks, place)
    dead = cell.node if cell.row.what in ("loss of power", "freeze") else None
    codes = {}
    for node, task in enumerate(tasks):
        if node != dead:
            codes[node] = task.wait(max(0.0, struck + cell_run.END_S - time.monotonic()))
    result.seconds = time.monotonic() - struck
    result.output = "\n".join(f"--- node {node}\n{task.output}" for node, task in enumerate(tasks))
    for node, code in codes.items():
        if code == 0:
            result.problems.append(f"node {node}'s task ended well")
    logs = {node: task.output for node, task in enumerate(tasks) if node != dead}
    result.problems += problems(cell, logs)


def _do(cell: Cell, gang: RemoteGang, tasks: list[RemoteTask], place: injector.Place) -> None:
    what, who = cell.row.what, cell.row.who
    if what == "loss of power":
        gang.kill_host(cell.node)
    elif what == "cut":
        gang.hosts.cut(cell.node)
    elif what == "freeze":
        for process in gang.hosts[cell.node].processes():
            send_signal(process, signal.SIGSTOP)
    elif what.startswith("SIG"):
        number = getattr(signal, what)
        if who.startswith("guard"):
            for process in gang.hosts[cell.node].processes():
                if process.command[1:4] == ("-I", "-S", "-c"):
                    send_signal(process, number)
                    return
            raise injector.NotReached(f"no {who}")
        tasks[cell.node].kill(number)
    else:
        place.say("go")


def problems(cell: Cell, logs: dict[int, str]) -> list[str]:
    """What each node told: that the node which was hit is to blame, or, of one that is cut off, its own view."""
    row, found = cell.row, []
    want = oracle.expected(cell)
    cut = row.what == "cut"
    for node, text in logs.items():
        match = oracle.last_told(text)
        if match is None:
            if node not in want.silent and not (node in want.own and re.search(want.own[node], text)):
                found.append(f"node {node} tells no cause; its log ends: {text[-600:]!r}")
            continue
        where, told = match[1], match[2]
        if cut and node == cell.node:
            continue  # to it the others are gone
        if cut and cell.node == 0 and where == f"node {node}":
            continue
        if where != f"node {want.node}":
            found.append(f"node {node} blames {where} ({told}), and it was node {want.node}")
        elif not re.search(want.told, text):
            found.append(f"node {node} does not tell the cause /{want.told}/: {told}")
    return found

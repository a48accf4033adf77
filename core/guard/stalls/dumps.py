"""Asks the processes of this node where they stand, and reads what they have written (:mod:`.stack_file`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..processes import process_table
from .c_frames import CFrames
from .frames import place, shown, threads
from .limits import MOST, NAME, TEXT
from .stack_file import ANSWER, BODY, DUMP, FOLDER

if TYPE_CHECKING:
    from ..loop.event_loop import Loop

    Roots = Callable[[], dict[int, str]]
    """Gives the processes whose trees belong to this node, with their titles."""

LOOK_S = 0.2
"""Between two looks at what processes write, ..."""

LOOKS = 25
"""... and how often. A process writes its stacks within a millisecond, unless it gets no time on a busy machine."""


def remove_files_of_the_dead(folder: str) -> None:
    """Remove the files, below a node's private ``folder``, of processes that are gone."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(os.path.join(folder, FOLDER)):
            pid = entry.name.partition(".")[0]
            process = process_table.lookup(int(pid)) if pid.isdecimal() else None
            if process is None or process.state in "ZX":
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)


class Dumps:
    """The stacks of one node.

    Parameters
    ----------
    folder : callable
        Gives the node's private folder.
    roots : callable
        Gives the processes whose trees belong to this node: those of its launches.
    """

    def __init__(self, loop: Loop, folder: Callable[[], str], roots: Roots) -> None:
        self._loop, self._folder, self._roots = loop, folder, roots

    def known(self) -> dict[int, tuple[str, str]]:
        """The processes that write their stacks when they are asked: their files, and their names."""
        found = {}
        folder = os.path.join(self._folder(), FOLDER)
        with contextlib.suppress(OSError):
            for entry in os.listdir(folder):
                pid, _, rest = entry.partition(".")
                fd, _, name = rest.partition(".")
                path = os.path.join(folder, entry)
                if pid.isdecimal() and _is_ready(int(pid), fd, path):
                    found[int(pid)] = (path, name)
        return found

    def ask(self, pids: Iterable[int]) -> None:
        """Have these write their stacks."""
        known = self.known()
        for pid in pids:
            if pid in known:
                with contextlib.suppress(OSError):
                    os.truncate(known[pid][0], 0)
                    process_table.send([pid], DUMP)

    def written(self) -> dict[int, str]:
        """What each has written since it was asked."""
        found = {}
        for pid, (path, _) in self.known().items():
            with contextlib.suppress(OSError), open(path, "rb") as file:
                found[pid] = file.read(1 << 20).decode("utf-8", "replace")
        return found

    def collect(self, then: Callable[[list[dict[str, Any]], dict[int, str]], None]) -> None:
        """Call ``then(records, texts)``: of each process its ``rank`` (or None), ``title``, ``place``, ``inner`` frame
        and ``stack``, and by pid the text that it wrote.
        """
        self.ask(self.known())
        last: dict[int, str] = {}
        looks = [0]

        def look() -> None:
            nonlocal last
            looks[0] += 1
            texts = self.written()
            if looks[0] < LOOKS and (texts != last or not all(texts.values())):
                last = texts
                self._loop.call_later(LOOK_S, look)
            else:
                CFrames(self._loop, texts, lambda c_frames: then(self._records(texts, c_frames), texts))

        self._loop.call_later(LOOK_S, look)

    def _records(self, texts: dict[int, str], c_frames: dict[int, list[str]]) -> list[dict[str, Any]]:
        known = self.known()
        records = []
        for pid, (_, name) in known.items():
            found = threads(texts.get(pid, "").replace(ANSWER.decode(), ""))
            rank = int(name) if name.isdecimal() else None
            title = "the body" if name == BODY else f"rank {rank}" if rank is not None else f"process {pid}"
            if found:
                where, inner = place(found[-1])
                stack = "\n".join([*c_frames.get(pid, ()), shown(found[-1])])
                record = {"place": where[:NAME], "inner": inner[:NAME], "stack": stack[:TEXT]}
            else:
                record = {"place": _in_the_kernel(pid), "inner": "", "stack": ""}
            records.append({"rank": rank, "title": title, **record})
        records += self._others(set(known))
        # The body of a node that has ranks waits for them.
        ranks = [record for record in records if record["title"] != "the body"]
        return (ranks or records)[:MOST]

    def _others(self, known: set[int]) -> list[dict[str, Any]]:
        """What runs here and is no Python program that we have started: state, and what it waits for in the kernel."""
        entries = process_table.table()
        found = []
        for root, title in self._roots().items():
            below = process_table.descendants([root], entries)
            if known & {root, *below}:
                continue
            parents = {entry.parent for entry in entries.values()}
            leaves = sorted(pid for pid in below if pid not in parents) or [root]
            for pid in leaves:
                rank = _rank_of(pid)
                named = f"rank {rank}" if rank is not None else title
                found.append({"rank": rank, "title": named, "place": _in_the_kernel(pid), "inner": "", "stack": ""})
        return found


def answered(texts: Mapping[int, str]) -> set[int]:
    """Which processes have returned to Python's interpreter since they were asked."""
    return {pid for pid, text in texts.items() if ANSWER.decode() in text}


def _is_ready(pid: int, fd: str, path: str) -> bool:
    """Whether ``pid`` still has the handler, and writes to its file: other code may have closed the descriptor since,
    or another program taken the process's place.
    """
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}") == path and process_table.catches(pid, DUMP)
    except OSError:
        return False


def _rank_of(pid: int) -> int | None:
    found = process_table.variables(pid)
    values = (found.get(name, b"") for name in process_table.RANK_VARIABLES)
    return next((int(value) for value in values if value.isdigit()), None)


def _in_the_kernel(pid: int) -> str:
    """What is known of a process that shows no Python stack: "sleep, state S, waits in hrtimer_nanosleep"."""
    # Without its number, so that ranks that wait for the same are one group.
    return process_table.described(pid).replace(f"process {pid} ", "", 1)[:300]

"""The text that faulthandler writes, as frames, and where a process stands by them: the user's code comes first."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x[0-9a-f]+")
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<name>.*)$')
_LIBRARY = re.compile(r"/(?:site|dist)-packages/|/lib/python\d+\.\d+/|^<")

_WRAPPERS = frozenset(
    ("wrapper", "wrapped", "inner", "__call__", "_call_impl", "_wrapped_call_impl", "decorate_context", "_fn", "apply")
)
"""Names of functions that stand between the user's call and what is called."""

SHOWN = 12
"""Innermost frames of a thread that are kept."""

TEXT = 200
"""Characters of a file's or function's name that are shown."""


class Frame:
    """One frame of a thread."""

    __slots__ = ("file", "line", "name")

    def __init__(self, file: str, line: str, name: str) -> None:
        self.file, self.line, self.name = file, line, name

    @property
    def is_library(self) -> bool:
        """Whether it is of Python, of an installed package, or of ours, and not of the user's program."""
        return bool(_LIBRARY.search(self.file)) or "/metaflow_extensions/gang/" in self.file

    @property
    def at(self) -> str:
        """ "train.py:31"."""
        return f"{os.path.basename(self.file)[-TEXT:]}:{self.line}"

    @property
    def key(self) -> tuple[str, str, str]:
        """What two frames have to share to be the same."""
        return (self.file, self.line, self.name)

    def __str__(self) -> str:
        return f"{self.name[:TEXT]} at {self.file[-TEXT:]}:{self.line}"


def threads(text: str) -> list[list[Frame]]:
    """The threads of a process by what faulthandler has written, each with the innermost frame first; the main thread
    is the last one.
    """
    found: list[list[Frame]] = []
    for line in text.splitlines():
        if _THREAD.match(line):
            found.append([])
        elif found and (frame := _FRAME.match(line)):
            found[-1].append(Frame(frame["file"], frame["line"], frame["name"]))
    return [frames for frames in found if frames]


def place(frames: Sequence[Frame]) -> tuple[str, str]:
    """Where a thread stands, and the innermost frame, where that is not the user's own.

    Example
    -------
    ``("all_reduce at train.py:31", "all_reduce at .../distributed_c10d.py:2501")`` where train.py calls
    ``dist.all_reduce()``, and ``("load_shard at data.py:12", "")`` where data.py's function stands in line 12 itself.
    """
    if not frames:
        return "", ""
    for depth, frame in enumerate(frames):
        if not frame.is_library:
            called = (one.name for one in reversed(frames[:depth]) if one.name not in _WRAPPERS and one.name[0] != "<")
            return f"{next(called, frame.name)[:TEXT]} at {frame.at}", str(frames[0]) if depth else ""
    return f"{frames[0].name[:TEXT]} at {frames[0].at}", ""


def shown(frames: Sequence[Frame]) -> str:
    """The innermost frames of a thread, one in a line, without those of libraries around the user's."""
    frames = list(frames)
    while frames and any(not frame.is_library for frame in frames[:-1]) and frames[-1].is_library:
        frames.pop()
    more = len(frames) - SHOWN
    return "\n".join([*map(str, frames[:SHOWN]), *([f"... and {more} more"] if more > 0 else [])])


def same(one: str, other: str, all_threads: bool) -> bool:
    """Whether two texts of faulthandler show the same stack of the main thread, or of all threads."""
    keys = [[[frame.key for frame in frames] for frames in threads(text)] for text in (one, other)]
    if all_threads:
        return sorted(keys[0]) == sorted(keys[1])
    return keys[0][-1:] == keys[1][-1:]

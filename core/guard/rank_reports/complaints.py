"""The last lines of a process: those that differ, and whether they report that a peer was gone."""

from __future__ import annotations

from ..text import LAST_LINES

ALIKE = 3
"""Lines alike but for their numbers that are shown of what several ranks have written together."""

SHAPE = 60
"""Characters of a line that are compared for it."""

_NUMBERS = {ord(digit): None for digit in "0123456789.-+"}


def matches(patterns: list[str], text: str) -> bool:
    if not patterns:
        return False
    import re

    return any(re.search(pattern, text) for pattern in patterns)


def distinct_lines(output: str) -> str:
    """The end of what several processes wrote together: of lines that are alike but for their numbers, as a loop prints
    them, only the last :data:`ALIKE`. So the last lines of one are not lost among what others repeat.
    """
    alike: dict[str, int] = {}
    lines: list[str] = []
    left_out = 0
    for line in reversed(output.splitlines()):
        shape = line[: 2 * SHAPE].translate(_NUMBERS)[:SHAPE]
        alike[shape] = alike.get(shape, 0) + 1
        if alike[shape] > ALIKE:
            left_out += 1
        elif len(lines) < LAST_LINES:
            lines.append(line)
        else:
            break
    if left_out:
        lines.append(f"({left_out} lines that differ from others by their numbers only are left out)")
    return "\n".join(reversed(lines))

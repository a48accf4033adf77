"""Python's tracebacks as text: which exception one names, and what is kept of a long one.

Standard library only: ``core/ranks/rank_main.py`` loads it by its path, too.
"""

from __future__ import annotations

import re

DETAIL_LIMIT = 12_000
"""Characters of traceback or last output that travel in a record; beginning and end are what is kept."""

DETAIL_LINES = 400
"""Lines of it. Metaflow's console prints some thousand a second."""

MESSAGE_LIMIT = 300
"""Characters of an exception's class and message where they have one line."""

_NOTE = 80
"""Characters reserved for a line that says how much is left out."""

_BEGINS = "Traceback (most recent call last):"
_GROUP_BEGINS = "  + Exception Group Traceback (most recent call last):"

_CHAINED = (
    "\nThe above exception was the direct cause of the following exception:\n",
    "\nDuring handling of the above exception, another exception occurred:\n",
)
"""What is between the tracebacks of a chain; the last of these is the exception's own."""

_CLASS = re.compile(r"(?:[\w<>]+\.)*([^\W\d]\w*)(?::|$)")
_GROUP_LINE = "  | "
_OURS = "[gang] "
_UP_TO = " characters are left out here, up to the exception ..."
"""What the line of a traceback that has been cut says before the line with the exception."""


def shortened(text: str, limit: int = DETAIL_LIMIT, lines: int = DETAIL_LINES) -> str:
    """``text``, without its middle where it has more than ``limit`` characters or ``lines`` lines; a line says how much
    is left out. An exception begins with where it was raised, and ends with its message: the beginning of that line,
    which has its class, is kept wherever it stands.
    """
    if len(text) <= limit and text.count("\n") < lines:
        return text
    # Cut by characters first, so that the rest never works on more than that. The lines between need some themselves.
    part, part_lines = limit // 3 - _NOTE, lines // 3 - 1
    start = "".join(text[:part].splitlines(keepends=True)[:part_lines]).rstrip("\n")
    at = _exception_at(text)
    said = _line_at(text, at)[:part]
    is_in_start = at + len(said) <= len(start)
    kept = 2 * part if is_in_start else 2 * part - len(said) - _NOTE
    rest = text[max(len(start), len(text) - max(kept, 0)) :]
    end = "".join(rest.splitlines(keepends=True)[-2 * part_lines :])
    if not is_in_start and at < len(text) - len(end):
        end = end[max(0, at + len(said) - (len(text) - len(end))) :]
        before = start[:at].rstrip("\n")
        start = f"{before}\n{_OURS}... {at - len(before)}{_UP_TO}\n{said}" if at > len(start) else f"{before}\n{said}"
        left_out = len(text) - len(end) - at - len(said)
    else:
        left_out = len(text) - len(start) - len(end)
    return f"{start}\n{_OURS}... {left_out} characters are left out here ...\n{end}"


def exception_message(trace: str) -> str:
    """The class and the message's first line of the exception that a Python traceback names; "" where there is none."""
    at = _exception_at(trace)
    return one_line(_line_at(trace, at), trace[at:] if at >= 0 else "")


def one_line(said: str, more: str = "") -> str:
    """ "ValueError: its text" for a line of a log: no control characters, no module, at most :data:`MESSAGE_LIMIT`
    characters. Where the message begins with an empty line, its first other one, of ``more``, is taken.
    """
    found = _CLASS.match(said)
    if found is None:
        return ""
    text = said[found.end() :].strip()
    if not text and said.rstrip().endswith(":"):
        text = next((line.strip() for line in more[:10_000].splitlines()[1:] if line.strip()), "")
    line = f"{found[1]}: {text}" if text else found[1]
    shown = visible(line[:MESSAGE_LIMIT])
    is_whole = len(shown) <= MESSAGE_LIMIT and len(line) <= MESSAGE_LIMIT
    return shown if is_whole else shown[: MESSAGE_LIMIT - 4] + " ..."


def visible(line: str) -> str:
    """``line`` with its control characters, and what is no Unicode, as Python writes them in a string: "\\x1b"."""
    return "".join(
        letter if letter.isprintable() or letter == "\t" else letter.encode("unicode_escape").decode()
        for letter in line
    )


def _exception_at(text: str) -> int:
    """Where the line begins that names the exception; -1 where ``text`` is no traceback."""
    cut = text.find(f"{_UP_TO}\n")
    if cut >= 0:
        return cut + len(_UP_TO) + 1
    own = max(text.rfind(between) for between in _CHAINED)
    own = max(own, 0)
    begins = min((at for at in (text.find(_BEGINS, own), text.find(_GROUP_BEGINS, own)) if at >= 0), default=-1)
    if begins < 0:
        if not own:
            return -1
        begins = text.find("\n", own + 1)  # it has no frames
    is_group = text.startswith(_GROUP_BEGINS, begins)
    at = text.find("\n", begins) + 1
    while 0 < at < len(text):
        line = text[at : at + MESSAGE_LIMIT]
        if is_group:
            line = line.removeprefix(_GROUP_LINE)
        if line.startswith(_OURS):
            at = text.find("\n", at) + 1  # the rest of a line follows, whose beginning is left out
        elif line[:1] not in (" ", "\n", "", "\t"):
            return at + (len(_GROUP_LINE) if is_group else 0)
        at = text.find("\n", at) + 1
    return -1


def _line_at(text: str, at: int) -> str:
    """The beginning of the line at ``at``; "" for -1."""
    return text[at : at + 2 * MESSAGE_LIMIT].partition("\n")[0] if at >= 0 else ""


def last_traceback(output: str) -> str:
    """The last Python traceback in ``output``, chained ones included, or ""."""
    at = output.rfind(_BEGINS)
    if at < 0:
        return ""
    start = output.rfind("\n", 0, at) + 1
    if output[start:at].strip(" +|-0123456789") == "" and "|" in output[start:at]:
        # That of an exception within a group, which begins before it.
        start = max(0, output.rfind(_GROUP_BEGINS, 0, start))
    # "During handling of ..." and "The above exception ..." join tracebacks that belong together.
    while (at := output.rfind(_BEGINS, 0, start)) >= 0:
        between = output[at:start]
        if "During handling of the above exception" not in between and "direct cause of the following" not in between:
            break
        start = output.rfind("\n", 0, at) + 1
    return output[start:].rstrip()

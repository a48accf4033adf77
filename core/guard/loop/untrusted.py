"""Checks what another machine sent: JSON within bounds, and fields of the right types and sizes.

A guard's port takes anything from anywhere, and a member of the gang may have gone wrong. So nothing that came
over the network is used before it has passed here.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from .framing import Nonsense

if TYPE_CHECKING:
    from .framing import Header

MAX_DEPTH = 16
"""How deep objects and arrays may be nested in each other; ours are nested four deep. (CPython's own limit is the depth
of its stack: it reads what it then cannot write.)"""

MAX_DIGITS = 20
"""Of an integer: more than 64 bits have. Python needs quadratic time for long ones."""

_NEITHER_BRACKETS_NOR_QUOTES = bytes(set(range(256)) - set(b'[]{}"'))


def parse(text: bytes) -> Header:
    """The JSON object that ``text`` is.

    Raises
    ------
    Nonsense
        It is none, it is nested deeper than :data:`MAX_DEPTH` (twice that at most), or has a number that is not finite
        or longer than :data:`MAX_DIGITS`.
    """
    if _too_deep(text):
        raise Nonsense(f"A frame's header is nested deeper than {MAX_DEPTH} levels.")
    shape = text.translate(_DIGITS_AND_E)
    decoder = _STRICT if _LONG in shape or b"0e" in shape else _FAST
    try:
        header = decoder.decode(text.decode())
    except (ValueError, RecursionError) as error:
        raise Nonsense(f"A frame's header is not JSON ({error}).") from None
    if not isinstance(header, dict):
        raise Nonsense(f"A frame's header is a JSON {type(header).__name__}, not an object.")
    return header


def _too_deep(text: bytes) -> bool:
    """In linear time, and before anything is parsed."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    if b"\\" in text:
        text = text.replace(rb"\\", b"").replace(rb"\"", b"")
    # Two quotes side by side are a text without brackets, or the end of one and the beginning of the next: without
    # them, what was inside of a text still is.
    brackets = b"".join(text.translate(None, _NEITHER_BRACKETS_NOR_QUOTES).replace(b'""', b"").split(b'"')[::2])
    for _ in range(MAX_DEPTH):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return bool(brackets)


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number that is too large")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


# A number that is too long or not finite has so many digits, or one before an "e" (as a text may have, too). Where
# there is none, no number has to be looked at: that is a call of a Python function for each.
_DIGITS_AND_E = bytes.maketrans(b"123456789E", b"000000000e")
_LONG = b"0" * (MAX_DIGITS + 1)

_STRICT = json.JSONDecoder(parse_int=_integer, parse_float=_float, parse_constant=_constant)
_FAST = json.JSONDecoder(parse_constant=_constant)


def integer(header: Header, key: str, low: int, high: int) -> int:
    """The integer ``header[key]``, from ``low`` to ``high``. Raises :class:`Nonsense` where it is none."""
    value = header.get(key)
    if type(value) is not int or not low <= value <= high:
        raise Nonsense(f"{key!r} is {shown(value)}, and not an integer from {low} to {high}")
    return value


def number(header: Header, key: str, low: float, high: float) -> float:
    """The number ``header[key]``, from ``low`` to ``high``. Raises :class:`Nonsense` where it is none."""
    value = header.get(key)
    if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
        raise Nonsense(f"{key!r} is {shown(value)}, and not a number from {low:g} to {high:g}")
    return float(value)  # type: ignore[arg-type]


def string(header: Header, key: str, most: int) -> str:
    """The text ``header[key]``, of at most ``most`` characters. Raises :class:`Nonsense` where it is none."""
    value = header.get(key)
    if not isinstance(value, str) or len(value) > most:
        raise Nonsense(f"{key!r} is {shown(value)}, and not a text of at most {most} characters")
    return value


def shown(value: object) -> str:
    """A value that came from outside, as a sentence has room for it: of a large one only the type."""
    if value is None or isinstance(value, (bool, int, float)):
        return str(value)
    if isinstance(value, str):
        return ascii(value if len(value) <= 60 else value[:60] + "...")
    return f"of type {type(value).__name__}"

"""What the doctor has found: one row of its table, and how the table looks."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK, MISSING, BROKEN, NOT_NEEDED = "ok", "missing", "broken", "not needed"
"""There, and as it should be; not there, so that what needs it cannot be used; there, and it does not work; not there,
or not as it could be, and everything works without it.
"""

_NAME_WIDTH, _STATE_WIDTH = 18, 12


@dataclass(frozen=True)
class Finding:
    """One row.

    Attributes
    ----------
    group : str
        The part of the table: "Launchers", "Machine".
    name : str
        What was looked for.
    state : str
        One of the four above.
    found : str
        What there is.
    advice : str
        A sentence of what to do, or "".
    output : str
        The end of what a failed program printed, or "".
    """

    group: str
    name: str
    state: str
    found: str
    advice: str = ""
    output: str = ""

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def rows(finding: Finding) -> str:
    """A finding as lines of the table."""
    indent = " " * (2 + _NAME_WIDTH + 1 + _STATE_WIDTH)
    width = max(40, min(shutil.get_terminal_size((120, 24)).columns, 140) - len(indent))
    words = [*_wrapped(finding.found, width), *_wrapped(finding.advice, width, "-> ")]
    head = f"  {finding.name:<{_NAME_WIDTH}} {finding.state:<{_STATE_WIDTH}}"
    return "\n".join((head + f"\n{indent}".join(words)).rstrip().splitlines())


def _wrapped(text: str, width: int, mark: str = "") -> list[str]:
    # A path or a command is not to be cut.
    return textwrap.wrap(
        text,
        width,
        initial_indent=mark,
        subsequent_indent=" " * len(mark),
        break_long_words=False,
        break_on_hyphens=False,
    )


def looked_for(group: str, checks: Sequence[Callable[[], list[Finding]]]) -> list[Finding]:
    """What these checks find; one that fails itself is a finding, too, since the others are worth having."""
    found: list[Finding] = []
    for check in checks:
        try:
            found += check()
        except Exception as error:
            name = check.__name__.replace("_", " ")
            advice = "This is a fault of the doctor's own; please report it."
            found.append(Finding(group, name, BROKEN, f"{type(error).__name__}: {error}", advice))
    return found

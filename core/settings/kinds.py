"""What kinds of settings there are: a number in its bounds, a switch, and a path with placeholders."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from ..exceptions import BadAttribute
from ..metaflow_compat.configuration import configured

DAY_S = 86_400.0

_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes
    ----------
    name : str
        METAFLOW_GANG_<NAME>.
    purpose, origin : str
        What it is for, and where its default comes from; sentences for the page.
    default, above, most : float
        It is greater than ``above``, and at most ``most``.
    unit : str
        "seconds", "megabytes", "connections".
    whole : bool
        Whether it is a whole number.
    attribute : bool
        Whether the decorators have an attribute of this name.
    may_be_off : bool
        Whether 0 is allowed, for off.
    """

    name: str
    purpose: str
    origin: str
    default: float
    above: float
    most: float = DAY_S
    unit: str = "seconds"
    whole: bool = False
    attribute: bool = False
    may_be_off: bool = False

    @property
    def variable(self) -> str:
        """The name of the environment variable, and of the entry in a configuration file."""
        return f"METAFLOW_GANG_{self.name.upper()}"

    @property
    def bounds(self) -> str:
        """What it may be: "a number of seconds greater than 0 and at most 86400"."""
        kind = "whole number" if self.whole else "number"
        off = ", or 0 for off" if self.may_be_off else ""
        return f"a {kind} of {self.unit} greater than {self.above:.10g} and at most {self.most:.10g}{off}"

    def read(self) -> float:
        """Its value. Raises BadAttribute, with name, value and bounds, for any other."""
        value = configured(f"GANG_{self.name.upper()}")
        return self.default if value in (None, "") else self.checked(value, f"{self.variable}={value}: it")

    def checked(self, value: Any, what: str) -> float:
        """``value``, also as text, as a number. Raises BadAttribute, which begins with ``what``, for any other."""
        found = number_of(value)
        if self.may_be_off and found == 0:
            return 0.0
        if not self.above < found <= self.most or (self.whole and found != int(found)):
            raise BadAttribute(f"{what} is {self.bounds}.")
        return found


def number_of(value: Any) -> float:
    """A number, or text that is one; NaN for anything else."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


@dataclass(frozen=True)
class Switch:
    """A setting that is on or off."""

    name: str
    purpose: str
    default: bool = False

    @property
    def variable(self) -> str:
        """The name of the environment variable, and of the entry in a configuration file."""
        return f"METAFLOW_GANG_{self.name.upper()}"

    @property
    def bounds(self) -> str:
        """What it may be, in the order of what is written most."""
        return f"{_ON[0]} for on (or {', '.join(_ON[1:])}), or {_OFF[0]} for off (or {', '.join(_OFF[1:])})"

    def read(self) -> bool:
        """Whether it is on. Raises BadAttribute for a value that is neither."""
        value = configured(f"GANG_{self.name.upper()}")
        if value in (None, ""):
            return self.default
        word = str(value).lower()
        if word not in _ON + _OFF:
            raise BadAttribute(f"{self.variable}={value}: it is {self.bounds}.")
        return word in _ON


@dataclass(frozen=True)
class PathSetting:
    """A setting that is a path, with placeholders; without it there is none."""

    name: str
    purpose: str
    placeholders: tuple[str, ...]

    @property
    def variable(self) -> str:
        """The name of the environment variable, and of the entry in a configuration file."""
        return f"METAFLOW_GANG_{self.name.upper()}"

    def read(self) -> str:
        """Its value, "" where there is none. Raises BadAttribute for a placeholder that there is not."""
        value = str(configured(f"GANG_{self.name.upper()}") or "")
        for found in re.findall(r"\{(.*?)\}", value):
            if found not in self.placeholders:
                known = ", ".join(f"{{{name}}}" for name in self.placeholders)
                raise BadAttribute(f"{self.variable}={value}: there is no {{{found}}}; there are {known}.")
        return value

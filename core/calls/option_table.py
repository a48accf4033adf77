"""The options of a launcher's tool, as users give them to ``run()``: read by a table of what the tool knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..exceptions import BadAttribute
from .arguments import BadArgument, alternating_to_argv, options_to_argv, plain_flags


@dataclass(frozen=True)
class OptionTable:
    """How one tool's options are read.

    Parameters
    ----------
    argument : str
        What the user calls them: "torchrun_args".
    flags : frozenset of str
        Those without a value, by their long names with underscores.
    other_names : mapping
        Long names of those that have another one: {"m": "module"}.
    refused : mapping
        Those that the gang decides itself, and a clause that says why.
    alternating : bool
        Whether names and values alternate in a list, and a value may be missing; else a list has the arguments of a
        command line, in which every option but a flag takes the next one as its value, whatever it begins with.

    Example
    -------
    >>> OptionTable("tool_args", frozenset({"quiet"}), {"q": "quiet"}).read({"num-nodes": 2, "q": True})
    {'num_nodes': '2', 'quiet': None}
    """

    argument: str
    flags: frozenset[str]
    other_names: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    alternating: bool = False

    def read(self, given: Mapping[str, Any] | Sequence[Any] | None) -> dict[str, str | None]:
        """Options by their long names with underscores; a flag's value is None. Of two with one name the later wins.

        Parameters
        ----------
        given : mapping or sequence, optional
            A dict of options, where True turns a flag on and False off, or a list: see ``alternating``.

        Raises
        ------
        BadAttribute
            Something in it is no option, an option is the gang's to decide, or a value is missing or too many.
        """
        argv = self._argv(given)
        values: dict[str, str | None] = {}
        position = 0
        while position < len(argv):
            text = argv[position]
            position += 1
            stripped, equals, value = text.lstrip("-").partition("=")
            name = self._long(stripped)
            if not text.startswith("-") or not name:
                raise BadAttribute(
                    f"{self.argument} has {text!r} where the name of an option is expected. Options of the script go "
                    "into entrypoint_args."
                )
            if name in self.refused:
                raise BadAttribute(f"{self.argument} has {name}, but {self.refused[name]}. Leave it out.")
            takes_next = position < len(argv) and not (self.alternating and _is_option(argv[position]))
            if name in self.flags:
                self._check_flag(name, bool(equals), takes_next)
                values[name] = None
            elif equals:
                values[name] = value
            elif takes_next:
                values[name] = argv[position]
                position += 1
            elif self.alternating:
                values[name] = None
            else:
                raise BadAttribute(f"{self.argument}: {name} needs a value.")
        return values

    def _argv(self, given: Mapping[str, Any] | Sequence[Any] | None) -> list[str]:
        try:
            if isinstance(given, Mapping):
                return options_to_argv(plain_flags(given, self.flags, self.other_names))
            if self.alternating:
                short = {name for name, long in self.other_names.items() if long in self.flags}
                return alternating_to_argv(given, self.flags | short)
            return options_to_argv(given)
        except BadArgument as error:
            raise BadAttribute(f"{self.argument}: {error}") from None

    def _long(self, name: str) -> str:
        name = name.replace("-", "_")
        return self.other_names.get(name, name)

    def _check_flag(self, name: str, has_value: bool, before_value: bool) -> None:
        if self.alternating and (has_value or before_value):
            raise BadAttribute(f"{self.argument}: {name} takes no value; give it as {{{name!r}: None}}.")
        if has_value:
            raise BadAttribute(f"{self.argument}: {name} takes no value.")


def to_argv(values: Mapping[str, str | None], left_out: frozenset[str]) -> list[str]:
    """Options that :meth:`OptionTable.read` has read, as a tool's arguments, in the user's order, but ``left_out``."""
    argv: list[str] = []
    for name, value in values.items():
        if name not in left_out:
            argv.append(f"--{name}" if value is None else f"--{name}={value}")
    return argv


def _is_option(text: str) -> bool:
    return text.startswith("-") and len(text) > 1 and not text[1].isdigit()

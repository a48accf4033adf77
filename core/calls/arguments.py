"""Options, as dicts or lists, turned into the arguments of a command.

Numbers, booleans and collections are spelled as JSON without its double quotes, since scripts written for the older
packages parse that. Strings and paths pass verbatim, whatever is in them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

_NEGATIVE_NUMBER = re.compile(r"-\.?\d.*")


class BadArgument(TypeError):
    """An option or argument that cannot become part of a command; the message names it."""


def options_to_argv(options: Mapping[str, Any] | Sequence[Any] | None) -> list[str]:
    """Options to arguments.

    Parameters
    ----------
    options : mapping or sequence, optional
        A mapping's key becomes ``--key``, or stays as it is where it starts with "-"; None or "" as its value makes it
        a bare flag. A sequence is taken as it is: see :func:`entrypoint_argv`.

    Raises
    ------
    BadArgument
        A value that no command line can carry.

    Example
    -------
    ``options_to_argv({"lr": 1e-5, "fp16": None, "name": "a b"}) == ["--lr", "1e-05", "--fp16", "--name", "a b"]``
    """
    if not isinstance(options, Mapping):
        return entrypoint_argv(options)
    argv = []
    for key, value in options.items():
        if not isinstance(key, str) or not key:
            raise BadArgument(f"The name of an option is a string that is not empty, not {key!r}.")
        argv.append(_checked(key if key.startswith("-") else f"--{key}", f"The option {key!r}"))
        if not _is_nothing(value):
            argv.append(_spelled(value, f"The option {key!r}"))
    return argv


def plain_flags(options: Mapping[str, Any], flags: Container[str], short: Mapping[str, str]) -> dict[str, Any]:
    """A dict of options in which True turns a flag on and False off: a launcher would take "true" for the script.

    Parameters
    ----------
    flags : container of str
        The options without a value, by their long names with underscores.
    short : mapping
        Long names of those that have a short one.
    """
    plain: dict[str, Any] = {}
    for key, value in options.items():
        name = str(key).lstrip("-").replace("-", "_")
        if short.get(name, name) in flags and isinstance(value, bool):
            if value:
                plain[key] = None
        else:
            plain[key] = value
    return plain


def entrypoint_argv(args: Mapping[str, Any] | Sequence[Any] | None) -> list[str]:
    """Arguments of the user's script: a mapping as in :func:`options_to_argv`, a sequence item by item.

    Strings and paths of a sequence are taken verbatim, numbers are spelled out.

    Raises
    ------
    BadArgument
        An item that no command line can carry, or a string where a list is meant.

    Example
    -------
    ``entrypoint_argv(["train", Path("data.csv"), 3]) == ["train", "data.csv", "3"]``
    """
    if isinstance(args, Mapping):
        return options_to_argv(args)
    return [_listed(item, position) for position, item in enumerate(_as_sequence(args))]


def alternating_to_argv(items: Sequence[Any] | None, flags: Container[str]) -> list[str]:
    """Options in a list in which names and values alternate: ``["nproc_per_node", 2, "max_restarts", 1]``.

    Names may also bear their dashes, or stand with their value in one item (``"--tee=3"``, ``"tee=3"``); a flag's value
    is None, "", True or left out.

    Parameters
    ----------
    flags : container of str
        The options without a value, by all their names, with underscores.

    Raises
    ------
    BadArgument
        A value without a name, or one that no command line can carry.
    """
    argv: list[str] = []
    # The option whose value the next item may be.
    open_option: str | None = None
    for position, item in enumerate(_as_sequence(items)):
        is_text = isinstance(item, str) and item != ""
        is_dashed = is_text and item.startswith("-") and not _NEGATIVE_NUMBER.fullmatch(item)
        if open_option is not None and not is_dashed:
            is_flag = open_option.lstrip("-").replace("-", "_") in flags
            if _is_nothing(item) or (is_flag and item is True):
                open_option = None
                continue
            if not is_flag:
                argv.append(_spelled(item, f"The option {open_option!r}"))
                open_option = None
                continue
        if not is_text:
            raise BadArgument(
                f"Item {position} of the list of options is {item!r}, where the name of an option is expected. "
                "Names and values alternate, or use a dict."
            )
        option = _listed(item if is_dashed else f"--{item}", position)
        argv.append(option)
        open_option = None if "=" in option else option
    return argv


def _as_sequence(items: Sequence[Any] | None) -> Sequence[Any]:
    if items is None:
        return ()
    if isinstance(items, (str, bytes)) or not isinstance(items, Sequence):
        raise BadArgument(
            f"Arguments are a dict such as {{'epochs': 3}} or a list such as ['--epochs', '3'], "
            f"not {_type_name(items)}: {items!r}."
        )
    return items


def _listed(item: Any, position: int) -> str:
    if item is None or isinstance(item, (Mapping, list, tuple)):
        raise BadArgument(f"Item {position} of the arguments is {item!r}; it can be a string, a path or a number.")
    return _spelled(item, f"Item {position} of the arguments")


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value == "")


def _spelled(value: Any, what: str) -> str:
    """One value as one argument; ``what`` begins the sentence of the error."""
    if isinstance(value, str):
        # An Enum that is a string, or numpy's, says something else in str().
        return _checked(str.__str__(value), what)
    if isinstance(value, os.PathLike):
        return _checked(os.fsdecode(value), what)
    try:
        return _checked(json.dumps(value, default=_plain).replace('"', ""), what)
    except (TypeError, ValueError, RecursionError):
        raise BadArgument(
            f"{what} has a value of type {_type_name(value)}, which cannot be written on a command line: "
            f"{value!r:.200}. Use a string, a path, a number, a bool, or a list or dict of these."
        ) from None


def _plain(value: Any) -> Any:
    """What JSON can spell, for a path and for a scalar of numpy or torch."""
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    plain = value.item() if callable(getattr(value, "item", None)) else None
    if not isinstance(plain, (bool, int, float, str)):
        raise TypeError
    return plain


def _checked(text: str, what: str) -> str:
    """The text, where the system can pass it to a program."""
    try:
        if b"\0" not in os.fsencode(text):
            return text
    except UnicodeEncodeError:
        pass
    raise BadArgument(f"{what} holds a character that no command line can carry: {text!r:.200}.")


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"

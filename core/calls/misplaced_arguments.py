"""What a call meant that has an argument too many: an option of the launcher's tool, or of the script, most often."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection
from typing import ParamSpec, TypeVar

from ..exceptions import BadAttribute

P = ParamSpec("P")
R = TypeVar("R")


def suggesting(call: str, places: dict[str, Collection[str]]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a function refuse arguments that it does not have with a sentence that says where they belong.

    Parameters
    ----------
    call : str
        What users write: "current.torch.run".
    places : dict
        The parameters that take options of others, and the names of these; an empty collection for one that takes any,
        such as the script's own.

    Example
    -------
    >>> @suggesting("current.torch.run", {"torchrun_args": ("max_restarts",), "entrypoint_args": ()})
    ... def run(torchrun_args=None, entrypoint_args=None): ...
    >>> run(max_restarts=1)
    BadAttribute: current.torch.run() has no argument max_restarts. Did you mean torchrun_args={'max_restarts': 1}?
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = [name for name in inspect.signature(function).parameters if name != "self"]

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name, value in kwargs.items():
                if name not in parameters:
                    raise BadAttribute(f"{call}() has no argument {name}. {_hint(name, value, parameters, places)}")
            return function(*args, **kwargs)

        return checked

    return decorate


def _hint(name: str, value: object, parameters: Collection[str], places: dict[str, Collection[str]]) -> str:
    option = name.replace("-", "_")
    for place, options in places.items():
        if option in options:
            return f"Did you mean {place}={{{name!r}: {value!r:.100}}}?"
    near = difflib.get_close_matches(name, parameters, n=1, cutoff=0.75)
    if near:
        return f"Did you mean {near[0]}?"
    free = next((place for place, options in places.items() if not options), None)
    if free is None:
        return f"It has {', '.join(parameters)}."
    return f"Did you mean {free}={{{name!r}: {value!r:.100}}}, for the program's own arguments?"

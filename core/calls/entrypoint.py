"""What the user wants run: a script, a module, a program, or a function; looked for before anything is started."""

from __future__ import annotations

import difflib
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from typing import Any

from ..exceptions import BadAttribute
from ..ranks.functions import FunctionCall, NotCallable, remove_call, remove_returns, write_call
from .arguments import BadArgument, entrypoint_argv


@dataclass(frozen=True)
class Entrypoint:
    """What the launcher starts, its arguments, and how a failure calls it; ``call`` where it is a function."""

    target: str
    arguments: tuple[str, ...]
    name: str
    call: FunctionCall | None = None

    def forget_returns(self) -> None:
        """What a function has returned in ranks that are started again does not count."""
        if self.call is not None:
            remove_returns(self.call)

    def remove(self) -> None:
        """Remove what was written down for it: a function's call, and what it returned, which may be large."""
        if self.call is not None:
            remove_call(self.call)


def read_entrypoint(
    entrypoint: str | os.PathLike[str] | Callable[..., Any] | None,
    entrypoint_args: Mapping[str, Any] | Sequence[Any] | None,
    flags: Mapping[str, str | None],
    folder: str,
    options: str,
    number_lines: bool = False,
) -> Entrypoint:
    """Check ``entrypoint`` and turn ``entrypoint_args`` into what it takes.

    Parameters
    ----------
    flags : mapping
        The launcher's options; "module" and "no_python" say what ``entrypoint`` is.
    folder : str
        Private; a function call is written down there.
    options : str
        What the user calls the options: "torchrun_args".
    number_lines : bool
        Whether a function's traceback bears the rank's number, as a script's does that has imported torch.

    Raises
    ------
    BadAttribute
        There is no such script, module or program, or the function or the arguments cannot travel.
    """
    if entrypoint is None or entrypoint == "":
        raise BadAttribute(
            'run() needs an entrypoint: the path of a script, as in run(entrypoint="train.py"), or a function.'
        )
    if callable(entrypoint):
        kind = next((name for name in ("module", "no_python", "run_path") if name in flags), None)
        if kind is not None:
            raise BadAttribute(f"{options} has {kind}, which is for scripts, but the entrypoint is a function.")
        try:
            call = write_call(entrypoint, entrypoint_args, folder, number_lines)
        except NotCallable as error:
            raise BadAttribute(str(error)) from error.__cause__
        return Entrypoint(call.script, (call.path,), f"{call.name}()", call)
    if not isinstance(entrypoint, str | os.PathLike):
        raise BadAttribute(
            f"The entrypoint is a {type(entrypoint).__name__}: {entrypoint!r:.200}. "
            "Give the path of a script, or a function."
        )
    try:
        arguments = tuple(entrypoint_argv(entrypoint_args))
    except BadArgument as error:
        raise BadAttribute(f"entrypoint_args: {error}") from None
    target = os.fsdecode(entrypoint)
    if "module" in flags:
        _check_module(target, options)
    elif "no_python" in flags:
        _check_program(target, options)
    else:
        check_script(target)
    return Entrypoint(target, arguments, target)


def check_script(path: str) -> None:
    """Raise BadAttribute where there is no such script, with what it may have been meant to be."""
    if os.path.isfile(path) or os.path.isfile(os.path.join(path, "__main__.py")):
        return
    full = os.path.abspath(path)
    if os.path.isdir(full):
        raise BadAttribute(f"The entrypoint {full} is a folder without a __main__.py. Give the path of a script.")
    hint = _similar(os.path.dirname(path), os.path.basename(path)) or _beside_flow(path)
    raise BadAttribute(
        f"There is no script {full}.{hint} A relative path starts at the task's working folder; on a cluster only the "
        "files of the code package are there."
    )


def _similar(folder: str, name: str) -> str:
    try:
        names = [entry for entry in os.listdir(folder or os.curdir) if entry.endswith(".py") or "." not in name]
    except OSError:
        return f" There is no folder {os.path.abspath(folder)} either."
    found = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(os.path.join(folder, entry) for entry in found)}?" if found else ""


def _beside_flow(path: str) -> str:
    flow = getattr(sys.modules["__main__"], "__file__", None)
    beside = os.path.join(os.path.dirname(os.path.abspath(flow)), path) if flow else ""
    return f" There is a {beside}, beside the flow." if beside and os.path.isfile(beside) else ""


def _check_module(name: str, options: str) -> None:
    top = name.partition(".")[0]
    # The rank starts with the working folder on its path. Only the first part is looked for: more would import it.
    if top in sys.builtin_module_names or PathFinder.find_spec(top, [os.getcwd(), *sys.path]) is not None:
        return
    hint = " Modules are named without .py." if name.endswith(".py") else ""
    raise BadAttribute(
        f"There is no module {top!r} (of the entrypoint {name!r}, as {options} has module) in {os.getcwd()} or on "
        f"Python's path.{hint}"
    )


def _check_program(name: str, options: str) -> None:
    if shutil.which(name) is None:
        raise BadAttribute(
            f"There is no program {name!r} that can be run ({options} has no_python). Check its name, the PATH, "
            "and that it is executable."
        )

"""Calls of a user's function in other processes: written to a file, made by ``rank_main.py``, and their returns read.

Standard library pickle, as :mod:`multiprocessing` uses it: a function travels by its name, so it has to have one at the
top level of a module. The flow file is imported in the child under the name ``__mp_main__``.
"""

from __future__ import annotations

import base64
import contextlib
import inspect
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..guard.rank_reports.error_file import error_record, error_text

RANK_MAIN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rank_main.py")

_WORKS = (
    "Functions at the top level of the flow file or of a module work, and so do bound methods of objects that can be "
    "pickled; functools.partial gives one of them fixed arguments."
)


class NotCallable(ValueError):
    """A function or an argument cannot be sent to another process; the message says what works."""


class RankTraceback(Exception):
    """Where in its rank an exception was raised: the cause of the exception that the step raises."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}" if self.args else ""


@dataclass(frozen=True)
class FunctionCall:
    """A call in the file ``path``; the Python file ``script`` makes it, with ``path`` as its argument."""

    script: str
    path: str
    name: str


def write_call(
    function: Callable[..., Any],
    arguments: Mapping[str, Any] | Sequence[Any] | None,
    folder: str,
    number_lines: bool = False,
) -> FunctionCall:
    """Write a call to a file, for :data:`FunctionCall.script` to make in any number of processes.

    Parameters
    ----------
    function : callable
        Something with a name at the top level of a module, or a bound method of an object that can be pickled.
    arguments : dict, list, tuple or None
        By name, or by position.
    folder : str
        Private to this user, since processes run what is in it.
    number_lines : bool
        Whether the lines of a traceback begin with the rank, "[rank1]: ", as torch writes it, since several ranks share
        an output.

    Raises
    ------
    NotCallable
        The function or an argument cannot be sent.

    Example
    -------
    ``call = write_call(train, {"epochs": 3}, gang.folder)``, then run ``[sys.executable, call.script, call.path]``.
    """
    name = _name(function)
    _refuse_nameless(function, name)
    args, kwargs = _arguments(name, arguments)
    body = _pickle_body(function, name, args, kwargs)
    main_file, main_package = None, None
    if b"__main__" in body:
        main_file, main_package = _main_module(name)
    call = {
        "name": name,
        # Paths are absolute, since an empty entry means the reader's folder.
        "sys_path": [os.path.abspath(entry) for entry in sys.path],
        "main_file": main_file,
        "main_package": main_package,
        "number_lines": number_lines,
        "body": body,
    }
    number = 0
    while True:
        path = os.path.join(folder, f"call-{number}.pickle")
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            number += 1
            continue
        with os.fdopen(descriptor, "wb") as file:
            pickle.dump(call, file, pickle.HIGHEST_PROTOCOL)
        return FunctionCall(RANK_MAIN, path, name)


def read_returns(call: FunctionCall) -> dict[int, bytes]:
    """Read what the processes of this node returned, by rank, pickled; :func:`load_return` loads it."""
    folder, prefix = os.path.split(f"{call.path}.return.")
    returns = {}
    for entry in os.listdir(folder):
        rank = entry.removeprefix(prefix)
        if entry.startswith(prefix) and rank.isdecimal():
            with open(os.path.join(folder, entry), "rb") as file:
                returns[int(rank)] = file.read()
    return dict(sorted(returns.items()))


def load_return(value: bytes) -> Any:
    """Load a return value of a rank. Raises what unpickling raises, as where its class is missing in the step."""
    with _main_under_both_names():
        return pickle.loads(value)


def remove_returns(call: FunctionCall) -> None:
    """Remove what has been returned by now; the call can be made again."""
    folder, prefix = os.path.split(f"{call.path}.return.")
    for entry in os.listdir(folder):
        if entry.startswith(prefix):
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(folder, entry))


def remove_call(call: FunctionCall) -> None:
    """Remove the files of the call and of its returns, which may be large."""
    remove_returns(call)
    with contextlib.suppress(FileNotFoundError):
        os.remove(call.path)


def load_error(error_file: str | None, where: str) -> Exception | None:
    """The exception that a rank's function raised, from its error file; None where it is not there or cannot come back.

    Parameters
    ----------
    error_file : str, optional
        What the child wrote, or torch's agent copied from it.
    where : str
        Printed before the rank's traceback: "rank 3 on node 1".
    """
    record = error_record(error_file)
    pickled = record.get("gang", {}).get("pickle") if isinstance(record.get("gang"), dict) else None
    if not isinstance(pickled, str):
        return None
    try:
        with _main_under_both_names():
            error = pickle.loads(base64.b64decode(pickled))
    except Exception:
        return None
    if not isinstance(error, Exception):
        return None
    error.__cause__ = RankTraceback(f"In {where}:\n{error_text(record)}")
    return error


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or f"{type(function).__qualname__} object"


def _refuse_nameless(function: Callable[..., Any], name: str) -> None:
    inner = inspect.unwrap(function) if callable(function) else function
    if getattr(function, "__name__", "") == "<lambda>":
        raise NotCallable(
            f"A lambda has no name by which another process could find it. Give it one with def. {_WORKS}"
        )
    if "<locals>" in name or "<locals>" in getattr(inner, "__qualname__", ""):
        outer = name.split(".<locals>")[0]
        raise NotCallable(
            f"{name.rpartition('.')[2]}() is defined inside {outer}(), where another process cannot find it. Move it "
            f"to the top level of its file and pass what it needs as entrypoint_args. {_WORKS}"
        )
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise NotCallable(f"{name}() is a coroutine or generator function: calling it would run none of it. {_WORKS}")


def _arguments(
    name: str, arguments: Mapping[str, Any] | Sequence[Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if arguments is None:
        return (), {}
    if isinstance(arguments, Mapping):
        wrong = [key for key in arguments if not isinstance(key, str)]
        if wrong:
            raise NotCallable(f"entrypoint_args of {name}() has the key {wrong[0]!r}: names of parameters are strings.")
        return (), dict(arguments)
    if isinstance(arguments, str | bytes) or not isinstance(arguments, Sequence):
        raise NotCallable(
            f"entrypoint_args of the function {name}() has to be a dict of its parameters, or a list of them in order, "
            f"not {type(arguments).__name__}."
        )
    return tuple(arguments), {}


def _pickle_body(function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise NotCallable(f"entrypoint_args do not fit {name}(): {error}.") from None
    except ValueError:
        pass  # A builtin without a signature: the call itself will tell.
    try:
        return pickle.dumps((function, args, kwargs), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        given = [(f"argument {key!r}", value) for key, value in [*enumerate(args), *kwargs.items()]]
        for what, value in given:
            if not _travels(value):
                raise NotCallable(
                    f"The {what} of {name}(), a {type(value).__qualname__}, cannot be sent to another process: {error}."
                    " Pass plain data, or what the function needs to open it itself."
                ) from error
        raise NotCallable(f"{name}() cannot be sent to another process: {error}. {_WORKS}") from error


def _travels(value: Any) -> bool:
    try:
        pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        return False
    return True


def _main_module(name: str) -> tuple[str, str | None]:
    """File and package of the program that runs now."""
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if not path or not os.path.isfile(path):
        raise NotCallable(
            f"{name}() belongs to a program that is no file (an interactive session?), so another process cannot "
            "import it. Put it into a module beside the flow."
        )
    spec = getattr(main, "__spec__", None)
    return os.path.abspath(path), getattr(spec, "parent", None) or None


@contextlib.contextmanager
def _main_under_both_names() -> Any:
    """Classes of the flow file come back under the name that it has in the child."""
    known = sys.modules.get("__mp_main__")
    sys.modules["__mp_main__"] = sys.modules["__main__"]
    try:
        yield
    finally:
        if known is None:
            sys.modules.pop("__mp_main__", None)
        else:
            sys.modules["__mp_main__"] = known

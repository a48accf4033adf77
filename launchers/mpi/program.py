"""The user's program as a command line, with Python in a form that aborts all ranks on an exception."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...core.calls.arguments import BadArgument, options_to_argv
from ...core.exceptions import BadAttribute
from . import rank_script

RANK_SCRIPT = os.path.abspath(rank_script.__file__)

Arguments = str | Sequence[Any] | Mapping[str, Any] | None

_PYTHON = re.compile(r"python(\d(\.\d+)?)?")
# What a shell would act on, and shlex takes for a part of an argument: the first character of each.
_SHELLS_OWN = "<>|&;`"
# Options of the interpreter that take the next argument as their value; -c and -m begin what it runs.
_WITH_VALUE = frozenset({"-W", "-X", "--check-hash-based-pycs"})
_FLAG = re.compile(r"-[bBdEhiIOqsSuvxP]+|-[WX].+")


def to_argv(given: Arguments, what: str) -> list[str]:
    """A string, split as a shell does; a list of arguments; a dict of options.

    Parameters
    ----------
    what : str
        How the message calls it: "program_args".

    Raises
    ------
    BadAttribute
    """
    try:
        if isinstance(given, str):
            refuse_shell(given, what)
            return shlex.split(given)
        if isinstance(given, Mapping):
            # MPI's options of one letter have one dash; of the longer ones both spellings are known.
            return options_to_argv({f"-{key}" if len(str(key)) == 1 else key: value for key, value in given.items()})
        return options_to_argv(given)
    except (BadArgument, ValueError) as error:
        raise BadAttribute(f"{what}: {error}") from None


def refuse_shell(text: str, what: str) -> None:
    """Refuse what needs a shell. None runs what the user gives: the program would get a redirection as an argument.

    Parameters
    ----------
    what : str
        How the message calls it.

    Raises
    ------
    BadAttribute
        ``text`` has, outside of quotes, what only a shell understands: a redirection, a pipe, a further command.
    """
    quote, escaped = "", False
    for at, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in _SHELLS_OWN or text.startswith("$(", at):
            shown = "$(...)" if character == "$" else character
            instead = (
                "Give the file as stdin=, which rank 0 reads."
                if character == "<"
                else "Put it into a script of its own, or run a shell: ['sh', '-c', '...']."
            )
            raise BadAttribute(
                f"{what} has {shown} outside of quotes: {text!r}. No shell runs it, so that the program would get it "
                f"as an argument. {instead} Quotes around it pass it on as it is."
            )


def program_argv(program: Arguments | os.PathLike[str], program_args: Arguments) -> list[str]:
    """The program with its arguments.

    Raises
    ------
    BadAttribute
    """
    if isinstance(program, os.PathLike):
        program = [os.fspath(program)]
    if program is not None and (isinstance(program, bytes) or not isinstance(program, (str, Sequence))):
        raise BadAttribute(f"program is a command such as 'python train.py', or a list of its words, not {program!r}.")
    argv = to_argv(program, "program")
    if not argv:
        raise BadAttribute("program is needed: what mpirun is to run, such as 'python train.py'.")
    return argv + to_argv(program_args, "program_args")


def has_mpi4py(python: str) -> bool:
    """Whether the interpreter ``python`` would find mpi4py."""
    if python == sys.executable:
        return importlib.util.find_spec("mpi4py") is not None
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('mpi4py') is None)"
    try:
        return subprocess.run([python, "-c", look], stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    except OSError:
        return False  # it need not be on this node


def under_mpi(argv: Sequence[str], has_mpi4py: Callable[[str], bool] = has_mpi4py) -> list[str]:
    """The command as every rank runs it.

    "python" is the step's own interpreter, which need not be the first on the PATH. Python runs ``-m mpi4py`` where
    there is one, so that an exception on one rank aborts the world: the others would wait for it for ever otherwise.

    Example
    -------
    ``under_mpi(["python", "-u", "a.py", "x"]) == [sys.executable, "-u", "-m", "mpi4py", RANK_SCRIPT, "a.py", "x"]``
    """
    program, *rest = argv
    if not _PYTHON.fullmatch(os.path.basename(program)):
        return list(argv)
    if program in ("python", "python3"):
        program = sys.executable
    options, command = _split_options(rest)
    if not command or command[0] in ("-V", "--version", "-VV", "--help"):
        return [program, *rest]
    if command[0] == "-m" and len(command) > 1 and command[1].split(".")[0] == "mpi4py":
        runs = command[1] == "mpi4py" and len(command) > 2
        return [program, *options, *command[:2], *(recorded(command[2:]) if runs else command[2:])]
    return [program, *options, *(["-m", "mpi4py"] if has_mpi4py(program) else []), *recorded(command)]


def recorded(command: Sequence[str]) -> list[str]:
    """What Python runs, a script or module with its arguments in such a way that its exception is written down."""
    if command[0] == "-m" and len(command) > 1:
        return [RANK_SCRIPT, *command]
    return list(command) if command[0].startswith("-") else [RANK_SCRIPT, *command]


def script_of(argv: Sequence[str]) -> str | None:
    """The path of the script that Python is to run; None where it is to run something else, or where it is no Python.

    Example
    -------
    ``script_of(["python", "-u", "a.py", "x"]) == "a.py"``
    """
    if not _PYTHON.fullmatch(os.path.basename(argv[0])):
        return None
    command = _split_options(argv[1:])[1]
    return command[0] if command and not command[0].startswith("-") else None


def _split_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The interpreter's own options, and what it is to run with its arguments."""
    at = 0
    while at < len(arguments):
        if arguments[at] in _WITH_VALUE:
            at += 2
        elif _FLAG.fullmatch(arguments[at]):
            at += 1
        else:
            break
    return list(arguments[:at]), list(arguments[at:])

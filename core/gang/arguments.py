"""Checks what a step's body gives to ``current.gang``, before its guard gets it."""

from __future__ import annotations

import errno
import inspect
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..attributes import check_variables
from ..exceptions import BadAttribute
from ..guard.host.owned_files import is_owned_by_gang
from ..guard.host.private_folder import is_private
from ..settings.kinds import number_of
from .launch_plan import LaunchPlan, Process

YEAR = 365 * 86400.0
"""Seconds; the longest time that a guard takes."""

Complain = Callable[[str, Any, Any, int], str]


def whole(call: str, name: str, value: Any, allowed: str, least: int, most: int) -> int:
    """An integer, NumPy's included, from ``least`` to ``most``, which the text ``allowed`` says in the message.

    Raises
    ------
    BadAttribute
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        raise BadAttribute(f"{call}({name}={value!r}): {allowed}.")
    return number


def seconds_of(call: str, name: str, value: Any, what: str, least: float = 0.0) -> float:
    """A number of seconds greater than ``least``, and at most a year.

    Raises
    ------
    BadAttribute
    """
    seconds = number_of(value)
    if isinstance(value, (str, bytes)) or not least < seconds <= YEAR:
        raise BadAttribute(f"{call}({name}={value!r}): {name} is {what}, more than {least:g} and at most a year.")
    return seconds


def command(
    argv: str | Sequence[str | os.PathLike[str]],
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    call: str = "current.gang.run",
) -> Process:
    """The process that ``call`` is to run; see there.

    Raises
    ------
    BadAttribute
    """
    try:
        arguments = [os.fsdecode(text) for text in ([argv] if isinstance(argv, (str, bytes, os.PathLike)) else argv)]
    except TypeError:
        raise BadAttribute(
            f"{call}({argv!r:.300}): it takes a program and its arguments, a list of strings and paths. Write a number "
            "as str(number)."
        ) from None
    if not arguments or not arguments[0]:
        raise BadAttribute(f"{call}() needs a program: its argv is empty.")
    check_variables(call, env)
    try:
        folder = os.getcwd() if cwd is None else os.path.abspath(os.fsdecode(cwd))
    except TypeError:
        raise BadAttribute(f"{call}(cwd={cwd!r}): cwd is the path of a folder.") from None
    process = Process(tuple(arguments), {**os.environ, **(env or {})}, folder, title=os.path.basename(arguments[0]))
    check_plan(LaunchPlan((process,)), call)
    return process


def check_plan(plan: LaunchPlan, call: str) -> None:
    """Raise BadAttribute for a plan that no process can be made of."""
    if not isinstance(plan, LaunchPlan) or not plan.processes:
        raise BadAttribute(f"{call}({plan!r:.300}): it takes a LaunchPlan with at least one Process.")
    for process in plan.processes:
        if not isinstance(process, Process):
            raise BadAttribute(f"{call}(): {process!r:.300} is no Process.")
        if not process.argv or not all(isinstance(text, str) for text in process.argv) or not process.argv[0]:
            raise BadAttribute(f"{call}(): the argv of {process.title!r} is {process.argv!r:.300}, and not strings.")
        if any("\0" in text for text in process.argv):
            raise BadAttribute(f"{call}(): an argument of {process.title!r} has a NUL character in it.")
        if not all(isinstance(text, str) for variable in process.env.items() for text in variable):
            raise BadAttribute(f"{call}(): the env of {process.title!r} has what is no string.")


def private_folder(path: str | os.PathLike[str], gang_folder: str) -> str:
    """Make a folder of this user alone that is to be removed with the gang; its absolute path.

    One that is there is taken where nothing would be lost by that: it is empty, or this gang's on this machine.

    Raises
    ------
    OSError
        It cannot be made, or is there and another's, or has files in it.
    BadAttribute
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise BadAttribute(f"current.gang.own_folder({path!r}): it takes a path.")
    path = os.path.abspath(os.fsdecode(path))
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not is_private(path):
            raise PermissionError(f"{path} is not a private folder of this user.") from None
        if os.listdir(path) and not is_owned_by_gang(gang_folder, path):
            raise OSError(
                errno.ENOTEMPTY, "There are files in it, which would be removed when the gang ends", path
            ) from None
    return path


def pattern_of(value: Any) -> str:
    """A pattern of paths for ``current.gang.own_files()``, from the root.

    Raises
    ------
    BadAttribute
    """
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise BadAttribute(f"current.gang.own_files({value!r}): it takes a pattern of paths, as '/dev/shm/mine-*'.")
    return os.path.abspath(os.fsdecode(value))


def check_save(save: Callable[[], object]) -> None:
    """Raise BadAttribute for what ``current.gang.on_preemption()`` cannot call."""
    if not callable(save):
        raise BadAttribute(f"current.gang.on_preemption({save!r}): it takes a function that has no arguments.")
    if runs_later(save):
        raise BadAttribute(
            f"current.gang.on_preemption({save!r}): it is called as a plain function. Write it as def, without async "
            "and without yield."
        )


def runs_later(function: Callable[..., object]) -> bool:
    """Whether a call of ``function`` runs nothing of it yet: it is ``async``, or has a ``yield``."""
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    return any(kind(one) for kind in kinds for one in (function, type(function).__call__))


def differ(name: str, first: object, other: object, node: int) -> str:
    """The message for nodes that call ``run()`` with other values of ``name``."""
    return f"The nodes call run() differently: {name} is {first!r} on node 0 and {other!r} on node {node}."


def check_alike(answers: Sequence[Mapping[str, Any]], alike: Sequence[str], complain: Complain = differ) -> None:
    """Raise BadAttribute where the nodes differ: see :meth:`Runs.agree`. The message is about the first such key."""
    for name in alike:
        for index, answer in enumerate(answers):
            if answer is not None and answer[name] != answers[0][name]:  # None is a lost node's
                raise BadAttribute(complain(name, answers[0][name], answer[name], index))

"""What users write in `@slurm(...)`, with METAFLOW_SLURM_* as defaults: checked, and as options of sbatch."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...core.metaflow_compat.configuration import configured
from .exceptions import SlurmException

SIGNAL_S = 30
"""Seconds before a time limit at which bodies are notified, where the step does not say."""

PASSED_ON = {
    "partition": "--partition",
    "account": "--account",
    "qos": "--qos",
    "constraint": "--constraint",
    "time": "--time",
}
"""Attributes whose text sbatch gets as it is."""

NAMES = (
    *PASSED_ON,
    "cpu",
    "gpu",
    "memory",
    "exclusive",
    "signal",
    "sbatch",
    "container",
    "executable",
    "login",
    "folder",
)
"""All attributes; each has a setting METAFLOW_SLURM_<NAME>."""

_OURS = re.compile(
    r"--?(?:a|array|D|chdir|e|error|o|output|i|input|export|export-file|h|help|J|job-name|n|ntasks|N|nodes"
    r"|ntasks-per-node|parsable|requeue|no-requeue|s|wrap|W|wait|test-only|signal)(?:=.*)?$"
)
"""Options of sbatch that this backend needs for itself."""

_TIME = re.compile(r"\d+|\d+:\d+(:\d+)?|\d+-\d+(:\d+){0,2}|UNLIMITED", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """What a step asks for, checked.

    Attributes
    ----------
    options : tuple
        Of sbatch.
    cpus : int
        Of each node; 0 for what the partition gives.
    signal_s : int
        Seconds before the time limit at which bodies are notified.
    container : tuple
        Options of srun, or a command before the task's, by :func:`container`.
    executable, login, folder : str
        "" where neither the step nor the site says.
    """

    options: tuple[str, ...]
    cpus: int
    signal_s: int
    container: tuple[str, ...]
    executable: str
    login: str
    folder: str


def with_defaults(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes, those that are None by the site's settings."""
    return {name: _or_setting(name, attributes.get(name)) for name in NAMES}


def _or_setting(name: str, value: Any) -> Any:
    return configured(f"SLURM_{name.upper()}") if value is None else value


def read(attributes: Mapping[str, Any], limit_s: int = 0) -> Request:
    """What a step asks for.

    Parameters
    ----------
    attributes : mapping
        By :data:`NAMES`; text from a command line counts as what it says.
    limit_s : int
        Seconds of its @timeout; 0 without one.

    Raises
    ------
    SlurmException
        A value that is not valid.
    """
    options = [f"{option}={attributes[name]}" for name, option in PASSED_ON.items() if attributes[name]]
    time = str(attributes["time"] or "")
    if time and not _TIME.fullmatch(time):
        raise _bad("time", time, "minutes, or Slurm's own form: 90, 1:30:00, 2-00:00:00, UNLIMITED")
    if limit_s and not time:
        # Metaflow raises in the task when the time is over; Slurm ends those that this does not end.
        options.append(f"--time={math.ceil(limit_s / 60) + 1}")
    cpus, gpus, memory = (_whole(attributes, name) for name in ("cpu", "gpu", "memory"))
    options += [f"--cpus-per-task={cpus}"] if cpus else []
    options += [f"--gpus-per-node={gpus}"] if gpus else []
    options += [f"--mem={memory}M"] if memory else []
    options += ["--exclusive"] if _boolean(attributes, "exclusive") else []
    signal_s = _whole(attributes, "signal") if attributes["signal"] not in (None, "") else SIGNAL_S
    return Request(
        (*options, *_extra(attributes["sbatch"])),
        cpus,
        signal_s,
        _container(attributes["container"]),
        *(str(attributes[name] or "") for name in ("executable", "login", "folder")),
    )


def _bad(name: str, value: Any, what: str) -> SlurmException:
    return SlurmException(f"@slurm({name}={value!r}): {name} is {what}.")


def _whole(attributes: Mapping[str, Any], name: str) -> int:
    value = attributes[name]
    try:
        number = math.ceil(float(value or 0))
    except (TypeError, ValueError, OverflowError):
        number = -1
    if number < 0 or isinstance(value, bool):
        units = {"memory": " of megabytes for each node", "signal": " of seconds"}.get(name, " for each node")
        raise _bad(name, value, f"a number{units}")
    return number


def _boolean(attributes: Mapping[str, Any], name: str) -> bool:
    value = attributes[name]
    found = {"true": True, "1": True, "false": False, "0": False, "none": False, "": False}.get(str(value).lower())
    if found is None:
        raise _bad(name, value, "True or False")
    return found


def _extra(given: Any) -> list[str]:
    """More options of sbatch, as one text or a list."""
    try:
        words = shlex.split(given) if isinstance(given, str) else [str(word) for word in given or ()]
    except (TypeError, ValueError):
        raise _bad("sbatch", given, "options of sbatch, as on its command line, or as a list") from None
    for word in words:
        if word == ":":
            raise SlurmException(
                f"@slurm(sbatch={given!r}) asks for a heterogeneous job, whose parts have "
                "different nodes: a gang has nodes of one kind. Leave the colon and what follows it out."
            )
        if _OURS.match(word):
            raise SlurmException(
                f"@slurm(sbatch={given!r}): {word.partition('=')[0]} is what @slurm sets itself. num_parallel is the "
                "number of nodes, and Metaflow's @retry is what tries again."
            )
    return words


def _container(given: Any) -> tuple[str, ...]:
    """What srun gets before the task: options of its own, or the words of a command such as ``apptainer exec``."""
    if not given:
        return ()
    words = shlex.split(given) if isinstance(given, str) else [str(word) for word in given]
    return tuple(words)

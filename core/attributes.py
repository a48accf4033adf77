"""Reading and checking what users write on a step, and in the calls of its body: numbers, ports, variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .exceptions import BadAttribute
from .metaflow_compat import environment, steps
from .metaflow_compat.configuration import command_words
from .settings.kinds import number_of
from .settings.table import BY_NAME, PREFLIGHT


def number(decorator: Any, name: str, least: float = 0.0) -> float:
    """Attribute ``name`` as a number of seconds greater than ``least``; strings from a command line count.

    Raises
    ------
    BadAttribute
    """
    value = decorator.attributes[name]
    seconds = number_of(value)
    if not seconds > least:
        raise BadAttribute(
            f"@{decorator.name}({name}={value!r}): {name} is a number of seconds greater than {least:g}."
        )
    return seconds


def number_or_setting(decorator: Any, name: str) -> float:
    """Attribute ``name``, or where it is None the setting of this name; both are checked by the bounds of that.

    Raises
    ------
    BadAttribute
    """
    value, setting = decorator.attributes[name], BY_NAME[name]
    return setting.read() if value is None else setting.checked(value, f"@{decorator.name}({name}={value!r}): {name}")


def boolean(decorator: Any, name: str) -> bool:
    """Attribute ``name`` as a boolean; "true" and "false" from a command line count.

    Raises
    ------
    BadAttribute
    """
    value = decorator.attributes[name]
    found = {"true": True, "false": False}.get(str(value).lower())
    if found is None:
        raise BadAttribute(f"@{decorator.name}({name}={value!r}): {name} is True or False.")
    return found


FULL = "full"


def preflight_level(decorator: Any) -> bool | str:
    """The attribute ``preflight``: a boolean, or :data:`FULL`; where it is None the setting of this name.

    Raises
    ------
    BadAttribute
    """
    value = decorator.attributes["preflight"]
    if value is None:
        return PREFLIGHT.read()
    levels: dict[str, bool | str] = {"true": True, "false": False, FULL: FULL}
    found = levels.get(str(value).lower())
    if found is None:
        raise BadAttribute(f'@{decorator.name}(preflight={value!r}): preflight is True, False or "full".')
    return found


def requested(decorators: list[Any], resource: str) -> int | None:
    """How much of ``resource`` ("gpu", "cpu") a node of the step asks for: the largest of its decorators, or None."""
    wishes = []
    for decorator in decorators:
        if decorator.name in ("resources", "batch", "kubernetes", "slurm"):
            try:
                wishes.append(int(float(decorator.attributes.get(resource) or 0)))
            except (TypeError, ValueError):
                continue  # Metaflow itself complains about it
    return max(wishes, default=0) or None


def check_variables(call: str, env: Mapping[str, str] | None) -> None:
    """Variables for a process, as the user gave them to ``call``: names and values are strings.

    Raises
    ------
    BadAttribute
    """
    if env is not None and not isinstance(env, Mapping):
        raise BadAttribute(f"{call}(env={env!r:.300}): it is a dict of names and values.")
    for name, value in (env or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise BadAttribute(f"{call}(env={{{name!r}: {value!r}}}): names and values are strings.")
        if not name or "=" in name or "\0" in name + value:
            raise BadAttribute(
                f"{call}(env={{{name!r}: {value!r}}}): names have no '=' and are not empty; neither has a NUL."
            )


def read_nproc(value: Any, gpus: int, cpus: int, cores: int = 0) -> int:
    """A number, or "auto" (the GPUs, or the NeuronCores, ``cores``, or 1), "gpu", "cpu". Raises BadAttribute for
    anything else.
    """
    if value == "auto":
        return gpus or max(cores, 1)
    if value == "gpu":
        if gpus == 0:
            raise BadAttribute(
                'nproc_per_node="gpu", but this node has no GPU. Ask for some, or use "auto" or a number.'
            )
        return gpus
    if value == "cpu":
        return max(cpus, 1)
    number = whole_number(value)
    if number is None or number < 1:
        raise BadAttribute(
            f'nproc_per_node is the number of processes on each node, 1 or more, or one of "auto" (the node\'s GPUs '
            f'or NeuronCores, or 1), "gpu" and "cpu"; not {value!r}.'
        )
    return number


def read_port(value: Any, name: str) -> int | None:
    """A port, as a number or as text; None and "" mean that one is chosen. Raises BadAttribute for anything else."""
    if value is None or value == "":
        return None
    number = whole_number(value)
    if number is None or not 1 <= number <= 65535:
        raise BadAttribute(
            f"{name} is a port from 1 to 65535, or left out, so that a free one is agreed upon; not {value!r}."
        )
    return number


def declared_port(environ: Mapping[str, str]) -> int | None:
    """The port that ``@kubernetes(port=...)`` declares for the pods, which a network policy may allow; None without."""
    declared = environment.declared_port(environ)
    return read_port(declared, "@kubernetes(port=...)") if declared.isdecimal() else None


def whole_number(value: Any) -> int | None:
    """An int, or text that is one; None for anything else, booleans included."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return None


def check_neighbours(decorator: Any, step: str, decorators: list[Any]) -> None:
    """Refuse what cannot stand beside a gang decorator, and let rest what others beside it would do again.

    Raises
    ------
    BadAttribute
    """
    for other in decorators:
        if other is decorator:
            continue
        if other.name == "catch":
            raise BadAttribute(
                f"Step *{step}* has @catch beside @{decorator.name}: a gang fails as one, so its failure cannot be "
                "caught on one node. Remove @catch; @retry works."
            )
        if other.name == "parallel":
            steps.leave_the_body(other)
        elif other.name == "batch":
            steps.wait_for_no_other_node(other)
        elif steps.is_parallel(other):
            raise BadAttribute(
                f"Step *{step}* has both @{decorator.name} and @{other.name}: a step has one launcher. "
                "Use a step for each."
            )


_WITHOUT_GANGS = {"step-functions": "AWS Step Functions", "airflow": "Airflow"}
"""Metaflow's schedulers that run no step on several nodes, by the command that deploys to them."""


def check_scheduler(decorator: Any, step: str) -> None:
    """Refuse to be deployed where no gang can run; Metaflow itself says so only after it has stored the code package.

    Raises
    ------
    BadAttribute
    """
    words = command_words()
    scheduler = _WITHOUT_GANGS.get(words[0]) if words else None
    if scheduler is not None and "create" in words:
        raise BadAttribute(
            f"Step *{step}* has @{decorator.name}, and {scheduler} runs no step on several nodes. Argo Workflows "
            "does (argo-workflows create), and so does a run from here, on AWS Batch or on Kubernetes."
        )


def check_split(name: str, step: str, graph: Any) -> None:
    """The step before must say how many nodes.

    Raises
    ------
    BadAttribute
    """
    for before in steps.steps_without_split(graph, step):
        raise BadAttribute(
            f"Step *{step}* has @{name}, but step *{before}* does not say how many nodes: write "
            f"self.next(self.{step}, num_parallel=N) there."
        )

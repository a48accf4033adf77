"""Reading and checking what users write on a step, before anything is scheduled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .failure import BadAttribute


def number(decorator: Any, name: str, least: float = 0.0) -> float:
    """Attribute ``name`` as a number of seconds greater than ``least``; strings from a command line count.

    Raises
    ------
    BadAttribute
    """
    value = decorator.attributes[name]
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = float("nan")
    if not seconds > least or isinstance(value, bool):
        raise BadAttribute(
            f"@{decorator.name}({name}={value!r}): {name} is a number of seconds greater than {least:g}."
        )
    return seconds


def requested(decorators: list[Any], resource: str) -> int | None:
    """How much of ``resource`` ("gpu", "cpu") a node of the step asks for: the largest of its decorators, or None."""
    wishes = []
    for decorator in decorators:
        if decorator.name in ("resources", "batch", "kubernetes"):
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
    for name, value in (env or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise BadAttribute(f"{call}(env={{{name!r}: {value!r}}}): names and values are strings.")


def check_neighbours(decorator: Any, step: str, decorators: list[Any]) -> None:
    """Refuse what cannot stand beside a gang decorator, and let a plain @parallel beside it rest.

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
            # Both say the same. Its own way of starting the nodes would start them twice.
            other.task_decorate = _leave_as_it_is
        elif getattr(other, "IS_PARALLEL", False):
            raise BadAttribute(
                f"Step *{step}* has both @{decorator.name} and @{other.name}: a step has one launcher. "
                "Use a step for each."
            )


def _leave_as_it_is(step_func: Any, *context: Any) -> Any:
    return step_func


def check_split(name: str, step: str, graph: Any) -> None:
    """The step before must say how many nodes.

    Raises
    ------
    BadAttribute
    """
    for node in graph:
        if step in node.out_funcs and not node.parallel_foreach:
            raise BadAttribute(
                f"Step *{step}* has @{name}, but step *{node.name}* does not say how many nodes: write "
                f"self.next(self.{step}, num_parallel=N) there."
            )

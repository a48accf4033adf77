"""Launchers of your own: a GangDecorator's subclass as what a flow file writes above a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..metaflow_compat import steps
from ..metaflow_compat.version import allow_to_spin
from .decorator import GangDecorator


def step_decorator(kind: type[GangDecorator]) -> Callable[..., Any]:
    """The step decorator of a launcher that no Metaflow extension registers, under any name, with or without arguments.

    A flow that imports the launcher's module needs nothing else, since each task loads the flow's file. An extension
    names the class in its STEP_DECORATORS_DESC instead.

    Parameters
    ----------
    kind : type
        The launcher's decorator, with a ``name`` that no other decorator has.

    Example
    -------
    >>> scatter = step_decorator(ScatterDecorator)
    >>> @scatter(nproc=2)
    ... @step
    ... def train(self): ...
    """
    allow_to_spin([kind.name])
    return steps.step_decorator(kind)

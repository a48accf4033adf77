"""A step's decorators and its place in the flow, as they are before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from metaflow.decorators import StepDecorator

from ..exceptions import MetaflowChanged
from .lookup import imported, member, require


def _parallel_decorator() -> Any:
    """Metaflow's own ``@parallel``, on which those of gangs are built.

    Where this Metaflow has none, flows without a gang go on: a stand-in raises MetaflowChanged for those that have one.
    """
    purpose = "run a step on several nodes"
    try:
        return imported("metaflow.plugins.parallel_decorator", "ParallelDecorator", purpose)
    except MetaflowChanged as missing:
        sentence = missing.message

    class Missing(StepDecorator):  # type: ignore[misc]
        def step_init(self, *context: Any) -> None:
            raise MetaflowChanged(sentence)

    return Missing


ParallelDecorator: Any = _parallel_decorator()


def is_control(ubf_context: str | None) -> bool:
    """Whether a hook that was given ``ubf_context`` runs in control's task, node 0."""
    return bool(ubf_context == imported("metaflow.unbounded_foreach", "UBF_CONTROL", "tell node 0 from the others"))


def is_spun(metadata: Any) -> bool:
    """Whether a hook that was given this metadata provider runs in a task of ``spin``, which is alone."""
    return getattr(metadata, "TYPE", "") == "spin"


def is_parallel(decorator: Any) -> bool:
    """Whether a decorator is one of those that Metaflow takes for ``@parallel``."""
    return bool(getattr(decorator, "IS_PARALLEL", False))


def steps_without_split(graph: Any, step: str) -> list[str]:
    """The steps that go on to step ``step`` and do not say on how many nodes."""
    purpose = "check the steps before a gang"
    return [
        str(node.name)
        for node in graph
        if step in member(node, "out_funcs", "a step of the flow's graph", purpose)
        and not member(node, "parallel_foreach", "a step of the flow's graph", purpose)
    ]


def step_decorator(kind: type[Any]) -> Callable[..., Any]:
    """What a flow file writes above a step, with or without arguments, for a class of decorators that no extension of
    Metaflow has registered.
    """
    return partial(imported("metaflow.decorators", "_base_step_decorator", "take a decorator of your own"), kind)


def leave_the_body(decorator: Any) -> None:
    """Have a decorator leave the step's body as it is: ``@parallel`` itself, beside one of ours, would start the nodes
    a second time.
    """
    require(decorator, "task_decorate", "@parallel", "start the nodes of a gang once")
    decorator.task_decorate = _the_same


def wait_for_no_other_node(batch: Any) -> None:
    """Have ``@batch`` not wait for the other nodes in node 0's task.

    Node 0's body ends when all nodes have stored their state. Metaflow would ask for 600 s whether they have, and then
    fail where it counts others than the gang's: those that were lost, or another gang's.
    """
    purpose = "end a gang on AWS Batch when its nodes have ended"
    require(batch, "_wait_for_mapper_tasks", "@batch", purpose)
    batch._wait_for_mapper_tasks = _nothing


def _the_same(step_func: Any, *context: Any) -> Any:
    return step_func


def _nothing(flow: Any, step: str) -> None:
    pass

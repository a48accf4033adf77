"""Which attempt of which task a process of a step is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskInfo:
    """One attempt of one task, named as Metaflow names it; ``attempt`` counts from 0."""

    flow_name: str
    run_id: str
    step_name: str
    task_id: str
    attempt: int

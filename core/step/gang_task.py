"""One node's task of a gang's step, and what the step's attributes and settings say about its gang."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..card.task_card import TaskCard
from ..logs import say
from ..metadata import TaskMetadata
from ..metaflow_compat.environment import control_task
from ..preflight.preflight import Preflight
from ..rendezvous.task_info import TaskInfo
from ..storage.traces import NodeTraces, traces_prefix


@dataclass(frozen=True)
class GangTask:
    """What a node has to know before its gang forms.

    Parameters
    ----------
    info : TaskInfo
        Which attempt of which task this is.
    num_nodes : int
    is_control : bool
        Whether it is node 0.
    flow_datastore : FlowDataStore
    task_datastore : TaskDataStore
    input_paths : sequence of str
        The tasks before the step, as Metaflow names them.
    gpus : int or None
        How many GPUs the step asks for on each node.
    join_timeout : float
        The attribute ``all_nodes_started_timeout``, in seconds.
    guard_settings : dict
        What the guard gets, by :func:`~.settings.guard_settings`.
    launcher : str
        The decorator, as the user writes it: "@torchrun".
    metadata : TaskMetadata
        Registers metadata of this task, and of others of the gang.
    log_bytes : int
        Bytes that are stored of each stream of another local node.
    debug : bool
        Whether the guard keeps a debug log.
    preflight : Preflight
        What the nodes compare and check once they have met.
    card : TaskCard or None
        The card of the gang, on node 0 where the step is to have one.
    """

    info: TaskInfo
    num_nodes: int
    is_control: bool
    flow_datastore: Any
    task_datastore: Any
    input_paths: Sequence[str]
    gpus: int | None
    join_timeout: float
    guard_settings: dict[str, float]
    log_bytes: int
    debug: bool
    launcher: str
    metadata: TaskMetadata
    preflight: Preflight
    card: TaskCard | None

    def traces(self, node: int, folder: str) -> NodeTraces:
        """What the ranks of ``node``, this one, leave of torch's profiler in ``folder``."""
        info = self.info
        control = control_task(info.task_id)
        prefix = traces_prefix(info.flow_name, info.run_id, info.step_name, control, info.attempt)
        return NodeTraces(self.flow_datastore, f"{prefix}/{node}", folder, say)

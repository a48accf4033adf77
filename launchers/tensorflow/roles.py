"""The role of each node in TF_CONFIG: chief, worker, parameter server or evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...core.exceptions import BadAttribute


@dataclass(frozen=True)
class Roles:
    """How many nodes have a role other than worker; by index the chief comes first, then workers, ``ps`` and evaluator.

    Parameters
    ----------
    chief : bool
        Whether node 0 is called the chief; else it is worker 0, which acts as one.
    ps : int
        Parameter servers, for ParameterServerStrategy.
    evaluator : bool
        Whether the last node evaluates, outside of the cluster.
    """

    chief: bool = False
    ps: int = 0
    evaluator: bool = False

    def of_one_node(self) -> Roles:
        """These without the evaluator, for a task of ``spin``. Raises BadAttribute where one node cannot do."""
        if self.ps:
            raise BadAttribute(
                f"@tensorflow(ps={self.ps}): spin runs a step on one node, and parameter servers need nodes of their "
                "own. Run the step in a run: python flow.py run, or resume."
            )
        return replace(self, evaluator=False)

    def check(self, num_nodes: int) -> None:
        """Raise BadAttribute where these roles leave no worker."""
        others = self.chief + self.ps + self.evaluator
        # A chief trains, too, but with parameter servers it only directs the workers.
        if num_nodes - others < (0 if self.chief and not self.ps else 1):
            raise BadAttribute(
                f"@tensorflow on {num_nodes} nodes with {self._spelled()}: no node is left to train. Ask for more with "
                "num_parallel."
            )

    def _spelled(self) -> str:
        given = [f"{name}={value!r}" for name, value in vars(self).items() if value]
        return ", ".join(given)

    def of(self, num_nodes: int) -> list[tuple[str, int]]:
        """Type and index of each node's task, by node."""
        evaluators = ["evaluator"] * self.evaluator
        chiefs, servers = ["chief"] * self.chief, ["ps"] * self.ps
        workers = ["worker"] * (num_nodes - len(chiefs) - len(servers) - len(evaluators))
        found: list[tuple[str, int]] = []
        for kind in (chiefs, workers, servers, evaluators):
            found += [(name, index) for index, name in enumerate(kind)]
        return found


def tf_config(roles: Roles, addresses: Sequence[str], node: int) -> dict[str, Any]:
    """TF_CONFIG of ``node``, whose cluster has the ``addresses`` ("host:port", by node) of all but the evaluator.

    Example
    -------
    >>> tf_config(Roles(), ["a:1", "b:2"], 1)
    {'cluster': {'worker': ['a:1', 'b:2']}, 'task': {'type': 'worker', 'index': 1}}
    """
    tasks = roles.of(len(addresses))
    cluster: dict[str, list[str]] = {}
    for (name, _), address in zip(tasks, addresses, strict=True):
        if name != "evaluator":
            cluster.setdefault(name, []).append(address)
    name, index = tasks[node]
    return {"cluster": cluster, "task": {"type": name, "index": index}}


def acts_as_chief(config: dict[str, Any]) -> bool:
    """Whether the task of this TF_CONFIG is the one that saves: the chief, or worker 0 where there is none."""
    task, cluster = config.get("task", {}), config.get("cluster", {})
    if task.get("type") == "chief":
        return True
    return task.get("type", "worker") == "worker" and int(task.get("index", 0)) == 0 and not cluster.get("chief")

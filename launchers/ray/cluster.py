"""``current.ray``: the cluster's address and nodes, and scripts on its head node."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...core.attributes import check_variables
from ...core.calls.entrypoint import Entrypoint
from ...core.calls.local_process import run_program
from ...core.calls.misplaced_arguments import suggesting
from ...core.calls.run import Runs
from ...core.dry_run.call import show_instead
from ...core.gang.gang import Gang
from ...core.ranks.functions import load_return, read_returns
from .exceptions import RayException


@dataclass(frozen=True)
class RayNode:
    """One node of the cluster: its index in the gang, Ray's id of it, its address, and whether Ray has it alive."""

    index: int
    node_id: str
    address: str
    alive: bool


@dataclass(frozen=True)
class RayCluster:
    """``current.ray`` in a ``@metaflow_ray`` step, whose body runs on the head node.

    Parameters
    ----------
    address : str
        What ``ray.init`` connects to; it is in RAY_ADDRESS, so ``ray.init()`` does it without.
    storage_path : str
        A folder of this attempt in the flow's datastore, for ``RunConfig(storage_path=...)`` of Ray Train and Tune.
    earlier_storage_paths : tuple of str
        Those of the attempts before this one, the latest first: a retry finds their checkpoints there.
    dashboard_url : str or None
        None where ``enable_dashboard`` is not set.

    Example
    -------
    >>> ray.init()                                  # joins this cluster
    >>> len(current.ray.nodes)
    4
    """

    address: str
    storage_path: str
    earlier_storage_paths: tuple[str, ...]
    dashboard_url: str | None
    _gang: Gang = field(repr=False, compare=False)

    @property
    def nodes(self) -> tuple[RayNode, ...]:
        """The cluster's nodes by index, as its head has them now; imports Ray."""
        from ray._raylet import GcsClient

        found = []
        for node_id, info in GcsClient(address=self.address).get_all_node_info(timeout=30).items():
            name = str(info.node_name)
            index = name.removeprefix("node")
            if name.startswith("node") and index.isdecimal():  # a program of the user's may have added another
                # GcsNodeInfo.state: 0 is ALIVE.
                found.append(RayNode(int(index), node_id.hex(), str(info.node_manager_address), info.state == 0))
        return tuple(sorted(found, key=lambda node: node.index))

    @suggesting("current.ray.run", {"entrypoint_args": ()})
    def run(
        self,
        entrypoint: str | os.PathLike[str] | Callable[..., Any] | None = None,
        entrypoint_args: Mapping[str, Any] | Sequence[Any] | None = None,
        env: Mapping[str, str] | None = None,
        dry_run: bool = False,
    ) -> Any:
        """Run a script, or a function, on the head node, in a process of its own, and wait for it.

        ``ray.init()`` in it joins this cluster. What it prints is in this task's log.

        Parameters
        ----------
        entrypoint : str, path or callable
            A Python script, or a function at the top level of the flow file or of a module.
        entrypoint_args : dict or list, optional
            For a script, its arguments: {"epochs": 3} becomes ``--epochs 3``, a list passes as it is. For a function,
            its parameters by name or in order.
        env : dict, optional
            Variables for it besides the step's own.
        dry_run : bool
            Whether what would start on this node is only shown, in its log (docs/dry-runs.md). Nothing starts, and None
            is returned. The cluster is there already; METAFLOW_GANG_DRY_RUN=1 shows how it would be started.

        Returns
        -------
        any
            What the function returned; None for a script.

        Raises
        ------
        BadAttribute
            An argument that is not valid. Nothing was started.
        RayException
            The script failed. A function's own exception is raised as it is.
        GangFailed
            Another node was lost.

        Example
        -------
        ``current.ray.run("tune.py", {"samples": 20})``
        """
        check_variables("current.ray.run", env)
        with (
            show_instead(self._gang, dry_run, "current.ray.run()", alone=True) as planned,
            Runs(self._gang, RayException).entrypoint(entrypoint, entrypoint_args) as what,
        ):
            run_program(self._gang, what, env or {}, RayException)
            return None if planned or what.call is None else self._returned(what)

    @staticmethod
    def _returned(what: Entrypoint) -> Any:
        assert what.call is not None
        values = read_returns(what.call)
        if not values:
            raise RayException(f"{what.name} ended its process without returning, as os._exit() does.")
        return load_return(values[0])

"""Registers the gang with JAX, so that ``jax.distributed.initialize()`` finds it."""

from __future__ import annotations

import importlib.machinery
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any

PREEMPTION = "JAX_ENABLE_PREEMPTION_SERVICE"
"""JAX's variable, and in lower case its setting, for a service that replaces the handler of SIGTERM."""

MODULE = "jax._src.clusters"
"""JAX's module of the kinds of clusters that it knows; each is a subclass of its ClusterEnv."""


@dataclass(frozen=True)
class Place:
    """This node's process among all, as JAX counts them.

    Parameters
    ----------
    coordinator_address : str
        "host:port" of process 0, which serves there.
    process_id : int
        This node's process: the index of the node.
    num_processes : int
        How many there are: one for each node.
    """

    coordinator_address: str
    process_id: int
    num_processes: int


def tell_jax(place: Place) -> None:
    """Register the gang with JAX, now or when it is imported: importing it here would be too early for its settings."""
    _leave_sigterm()
    module = sys.modules.get(MODULE)
    if module is not None:
        _register(module, place)
    else:
        sys.meta_path.insert(0, _AfterImport(place))


def _leave_sigterm() -> None:
    """Have JAX's coordination service leave SIGTERM alone, which ends the gang and has it save: the service would only
    note it and go on. A user's own setting is kept.
    """
    if PREEMPTION in os.environ:
        return
    os.environ[PREEMPTION] = "0"
    # A JAX that was imported has read its environment. One that is half imported has no config yet, an old one has
    # no such setting.
    config = getattr(sys.modules.get("jax"), "config", None)
    if config is not None and hasattr(config, PREEMPTION.lower()):
        config.update(PREEMPTION.lower(), False)


def _register(module: ModuleType, place: Place) -> None:
    base: Any = module.ClusterEnv

    class GangCluster(base):  # type: ignore[misc]
        name = "metaflow_gang"

        @classmethod
        def is_env_present(cls) -> bool:
            return True

        @classmethod
        def get_coordinator_address(cls, *arguments: Any, **named: Any) -> str:
            return place.coordinator_address

        @classmethod
        def get_process_count(cls) -> int:
            return place.num_processes

        @classmethod
        def get_process_id(cls) -> int:
            return place.process_id

    # The first one that is there is taken, and the gang may run below Slurm or in a pod.
    base._cluster_types.remove(GangCluster)
    base._cluster_types.insert(0, GangCluster)


class _AfterImport(MetaPathFinder):
    """Register the gang as soon as JAX's list of clusters has been loaded."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, self._place)
        return spec


class _ThenRegister(Loader):
    def __init__(self, loader: Loader, place: Place) -> None:
        self._loader = loader
        self._place = place

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register(module, self._place)

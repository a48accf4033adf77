"""``@metaflow_ray``: a Ray cluster over the nodes of a gang."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from ...core.attributes import number, read_port, requested
from ...core.exceptions import BadAttribute, GangInterrupt
from ...core.gang.gang import Gang
from ...core.logs import say
from ...core.step.decorator import GangDecorator
from .cluster import RayCluster
from .driver import leave_cluster, use_cluster
from .forming import RayInstall, Wanted, form_cluster, installed_ray
from .storage import SUFFIX, storage_path

LOG_STYLES = ("auto", "record", "pretty")
LOGGING_LEVELS = ("debug", "info", "warning", "error", "critical")

DEBUG_VARIABLE = "METAFLOW_RAY_DEBUG_MODE"
"""The older package's: its values "1", "true", "enable" and "enabled" show the output of ``ray start``."""


class RayInterrupt(GangInterrupt, KeyboardInterrupt):
    """Ends a body that is inside of Ray: of all that a signal's handler may raise, it lets a KeyboardInterrupt pass."""


class RayDecorator(GangDecorator):
    """
    Runs the step's body on the head node of a Ray cluster that has all nodes of the gang, and lives as long as the
    step. `ray.init()` in the body joins it.

    Parameters
    ----------
    all_nodes_started_timeout : float, optional, default 600
        Seconds to wait for the last node to start.
    card : bool, optional, default True
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    preflight : bool | str, optional, default True
        Whether the nodes compare software and machines before the body; "full" also tries the network between them.
    end_timeout : float, optional, default 30
        Seconds that the end of the step, after its body, may take on a node once the gang has failed.
    lost_host_timeout : float, optional, default 30
        Seconds within which a host that no longer answers ends the gang.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node that does not answer while its host does ends the gang.
    stall_timeout : float, optional, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    main_port : int | str, optional, default None
        Port of the head that the other nodes, and `ray.init`, connect to; a free one by default.
    heartbeat_timeout : float, default 10
        Seconds after which Ray's head gives up a node that does not answer. A lost host is noticed within 10 s anyway.
    unreachable_timeout : float, default 60
        Seconds after which a node, or a program, gives up a head that does not answer.
    tolerate_lost_workers : bool, default False
        Whether the step goes on where a node other than the head is lost; Ray starts its tasks again on those left.
    enable_worker_logs : bool, default False
        Whether what Ray's workers print on a node is in the log of that node's task, too.
    logging_level : str, optional, default None
        Shows the output of `ray start` on each node, from this level on, such as "info" or "debug".
    log_style : str, optional, default None
        The same, in a style: "pretty", "record" or "auto".
    enable_dashboard : bool, default False
        Whether the head serves Ray's dashboard, on the address by which the nodes reach it.
    dashboard_port : int | str, optional, default None
        The dashboard's port; 8265 where it is free by default, and else another one.
    worker_polling_freq : float, optional, default None
        Accepted for the sake of older flows. Nothing polls any more.

    MF Add To Current
    -----------------
    ray -> metaflow_extensions.gang.launchers.ray.cluster.RayCluster
        The cluster: `address`, `nodes`, `dashboard_url`, `storage_path`; `run()` runs a script on its head node.

        @@ Returns
        -------
        RayCluster
            The cluster that this step's gang is.
    ray_storage_path -> str
        A folder of this attempt in the flow's datastore, for the checkpoints of Ray Train and Tune.

        @@ Returns
        -------
        str
            A path, or a URL, that `RunConfig(storage_path=...)` takes.
    """

    name = "metaflow_ray"
    distributions = ("ray",)
    defaults: ClassVar[dict[str, Any]] = {
        **GangDecorator.defaults,
        "main_port": None,
        "worker_polling_freq": None,
        "heartbeat_timeout": 10,
        "unreachable_timeout": 60,
        "tolerate_lost_workers": False,
        "enable_worker_logs": False,
        "logging_level": None,
        "log_style": None,
        "enable_dashboard": False,
        "dashboard_port": None,
    }
    runs_on_control_only = True
    interrupt = RayInterrupt
    sigterm_module = "ray._private.worker"  # ray.init() has a SIGTERM raise SystemExit

    memory: int | None = None
    shared_memory: int | None = None
    _install: RayInstall

    def step_init(self, flow: Any, graph: Any, step: str, decos: list[Any], *context: Any) -> None:
        super().step_init(flow, graph, step, decos, *context)
        self.memory, self.shared_memory = requested(decos, "memory"), requested(decos, "shared_memory")

    def check_attributes(self) -> None:
        """Raise BadAttribute for a value that is not valid."""
        super().check_attributes()
        for name in ("main_port", "dashboard_port"):
            self.attributes[name] = read_port(self.attributes[name], f"@metaflow_ray({name}=...)")
        for name in ("heartbeat_timeout", "unreachable_timeout"):
            self.attributes[name] = number(self, name, least=0.0)
        for name, known in (("log_style", LOG_STYLES), ("logging_level", LOGGING_LEVELS)):
            value = self.attributes[name]
            if value is not None and str(value).lower() not in known:
                raise BadAttribute(f"@metaflow_ray({name}={value!r}): it is one of {', '.join(map(repr, known))}.")

    def preflight(self) -> None:
        """Raise RayNotInstalledException where there is no Ray."""
        self._install = installed_ray(self.task.step_name)

    def tolerates_lost_nodes(self, num_nodes: int) -> bool:
        """Whether the gang outlives a node other than control."""
        return bool(self.attributes["tolerate_lost_workers"])

    @property
    def shows_ray_start(self) -> bool:
        """Whether the output of ``ray start`` is in the log."""
        debug = os.environ.get(DEBUG_VARIABLE, "").lower() in ("1", "true", "enable", "enabled")
        return debug or any(self.attributes[name] is not None for name in ("logging_level", "log_style"))

    def form(self, gang: Gang) -> dict[str, object]:
        """Start Ray on every node, and have the step's programs find it."""
        wanted = Wanted(self.attributes, self.cpus, self.gpus, self.memory, self.shared_memory, self.shows_ray_start)
        formed = form_cluster(gang, wanted, self._install)
        if not gang.is_control:
            return {}
        use_cluster(formed.variables, os.environ)
        attempts = range(self.task.attempt, -1, -1)
        paths = [storage_path(self.flow_datastore, self.results_prefix(SUFFIX, attempt)) for attempt in attempts]
        cluster = RayCluster(formed.cluster.bootstrap, paths[0], tuple(paths[1:]), formed.dashboard_url, gang)
        if cluster.dashboard_url:
            say(f"Ray's dashboard: {cluster.dashboard_url}")
        return {"ray": cluster, "ray_storage_path": cluster.storage_path}

    def leave(self, ok: bool) -> None:
        """The body is over: its own connection to Ray goes before Ray does."""
        leave_cluster(ok)

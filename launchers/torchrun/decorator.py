"""``@torchrun``: PyTorch's distributed training over the nodes of a gang."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from ...core.attributes import declared_port, read_nproc, read_port
from ...core.exceptions import BadAttribute, package_missing
from ...core.gang.gang import Gang, left_out
from ...core.gang.restarts import WARM, RestartPolicy
from ...core.gang.spares.world import SPARES, SpareNodes
from ...core.gang.spares.worlds import Worlds, tell_the_limits
from ...core.metaflow_compat.environment import control_task
from ...core.step.decorator import GangDecorator
from ...core.storage.results import results_prefix
from .exceptions import TorchNotInstalledException
from .launcher import TorchrunExecutor
from .options import LAUNCHERS

_SUFFIX = "mf.torchrun"


class TorchrunDecorator(GangDecorator):
    """
    Runs the step on every node of a gang, and gives it `current.torch.run`, which starts PyTorch's ranks on them.

    Parameters
    ----------
    master_port : int | str, optional, default None
        Port on node 0 where the ranks meet. Where it is not given, the one that
        `@kubernetes(port=...)` names, else a free one is agreed upon.
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
    nproc_per_node : int | str, optional, default None
        Ranks on each node: a number, "gpu", "cpu" or "auto" (the node's GPUs, or its
        NeuronCores, or 1), which is the default.
    restarts : int, optional, default 0
        How often the ranks of one `current.torch.run` are started again, on the same nodes, when one has failed.
    restart_window : float, optional, default 0
        Seconds in which restarts are counted; 0 is the whole call.
    restart_on : callable, optional, default None
        Gets what has failed, and returns whether the ranks are started again. By default failures that another try
        would meet again end the step at once: an import error, a wrong argument, an exception before any progress.
    spares : int, optional, default 0
        How many of the nodes that `num_parallel` counts wait, to take the places of nodes that are lost. Each time
        costs a restart; without `restarts` there are as many of these as nodes can be lost.
    min_nodes : int, optional, default None
        How few nodes may have ranks once no spare node is left; by default no fewer than at first.
    warm : bool, default True
        Whether, with `restarts`, interpreters that have imported the framework wait beside the ranks for a restart.
    launcher : str, optional, default None
        "direct": the gang starts the ranks itself. "torchrun": torchrun's agent does. By default the agent is
        used only where an option in `torchrun_args` needs it.

    MF Add To Current
    -----------------
    torch -> metaflow_extensions.gang.launchers.torchrun.launcher.TorchrunExecutor
        Runs a script or a function in every rank: `current.torch.run(entrypoint="train.py")`.

        @@ Returns
        -------
        TorchrunExecutor
            What runs scripts and functions in the ranks of this gang.
    """

    name = "torchrun"
    distributions = ("torch",)
    defaults: ClassVar[dict[str, Any]] = {
        **GangDecorator.defaults,
        **WARM,
        **SPARES,
        "master_port": None,
        "nproc_per_node": None,
        "launcher": None,
    }

    def check_attributes(self) -> None:
        """Raise BadAttribute for a value that is not valid."""
        super().check_attributes()
        RestartPolicy.of(self)
        SpareNodes.of(self)
        self._own_port()
        if self.attributes["nproc_per_node"] is not None:
            # Only how it is spelled can be checked here: the node's GPUs are counted on the node.
            read_nproc(self.attributes["nproc_per_node"], gpus=1, cpus=1)
        launcher = self.attributes["launcher"]
        if launcher is not None and launcher not in LAUNCHERS:
            raise BadAttribute(
                f'@torchrun(launcher={launcher!r}): it is "direct" (the gang starts the ranks) or "torchrun" (its '
                "agent does), or left out."
            )

    def ranks(self, gpus: int, cpus: int) -> int:
        """Those of the attribute ``nproc_per_node``."""
        wanted = self.attributes["nproc_per_node"]
        return max(gpus, 1) if wanted in (None, "gpu") else read_nproc(wanted, gpus, cpus)

    def preflight(self) -> None:
        """Raise TorchNotInstalledException where the ranks would not find torch."""
        if importlib.util.find_spec("torch") is None:
            raise TorchNotInstalledException(package_missing(self.task.step_name, "PyTorch", "torch"))

    def offer(self, free_port: Callable[[], int]) -> dict[str, Any]:
        """The port of node 0 at which the ranks of the first run() meet; leased by then where it is the user's own."""
        return {"master_port": self._own_port() or declared_port(os.environ) or free_port()}

    def _own_port(self) -> int | None:
        return read_port(self.attributes["master_port"], "@torchrun(master_port=...)")

    def tolerates_lost_nodes(self, num_nodes: int) -> bool:
        """Whether the gang goes on without nodes that it loses: where there are some to spare."""
        return self.may_leave_out(num_nodes) > 0

    def may_leave_out(self, num_nodes: int) -> int:
        """As many as can be lost later."""
        wanted = self._spare_nodes()
        return 0 if wanted is None else wanted.replacements(num_nodes)

    def _spare_nodes(self) -> SpareNodes | None:
        """What the user says of lost nodes; None under ``spin``, whose gang is one node, and loses none."""
        return None if self._is_spun else SpareNodes.of(self)

    def form(self, gang: Gang) -> dict[str, object]:
        """What the step finds on ``current``. Raises BadAttribute where more nodes wait than there are."""
        policy, worlds, wanted = RestartPolicy.of(self), None, self._spare_nodes()
        first = None if wanted is None else wanted.world("@torchrun", gang.num_nodes)
        if first is not None and (most := self.may_leave_out(gang.num_nodes)):
            worlds = Worlds(gang, first)
            worlds.begin_without(left_out(gang))
            policy = replace(policy, restarts=policy.restarts or most)
            tell_the_limits(gang)
        task = self.task
        prefix = results_prefix(
            _SUFFIX,
            task.flow_name,
            task.run_id,
            task.step_name,
            control_task(task.task_id),
            task.attempt,
        )
        executor = TorchrunExecutor(
            gang,
            self.flow_datastore,
            prefix,
            nproc_per_node=self.attributes["nproc_per_node"],
            master_port=self._own_port(),
            launcher=self.attributes["launcher"],
            policy=policy,
            worlds=worlds,
        )
        return {"torch": executor}

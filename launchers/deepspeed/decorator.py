"""``@deepspeed``: DeepSpeed's ranks over the nodes of a gang."""

from __future__ import annotations

import importlib.util
from typing import Any, ClassVar

from ...core.exceptions import BadAttribute, package_missing
from ...core.gang.gang import Gang
from ...core.gang.restarts import RESTARTS, RestartPolicy
from ...core.gang.shares import own_neuron_cores, own_slots
from ...core.remote_shell.ssh_checks import missing_tools
from ...core.step.decorator import GangDecorator
from .constants import DEEPSPEED_SUFFIX
from .exceptions import DeepspeedMissing
from .launcher import DeepspeedExecutor
from .options import TRANSPORTS


class DeepspeedDecorator(GangDecorator):
    """
    Runs the step on every node of a gang, and gives it `current.deepspeed.run`, which starts DeepSpeed's ranks on them.

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
    restarts : int, optional, default 0
        How often the ranks of one `current.deepspeed.run` are started again, on the same nodes, when one has failed.
    restart_window : float, optional, default 0
        Seconds in which restarts are counted; 0 is the whole call.
    restart_on : callable, optional, default None
        Gets what has failed, and returns whether the ranks are started again. By default failures that another try
        would meet again end the step at once: an import error, a wrong argument, an exception before any progress.
    transport : str, default "auto"
        How ranks are started: "none" (each node's own launcher starts its own, which needs nothing in the image), "ssh"
        (node 0 starts all, over a private sshd on each node), "channel" (the same over an encrypted connection of the
        gang), or "auto" ("none", unless an option names a launcher that reaches other nodes).
    worker_polling_freq : float, optional, default None
        Accepted for the sake of older flows. Nothing polls any more.
    use_sudo : bool, default False
        Accepted for the sake of older flows. Nothing needs root any more.

    MF Add To Current
    -----------------
    deepspeed -> metaflow_extensions.gang.launchers.deepspeed.launcher.DeepspeedExecutor
        Runs a script or a function in every rank: `current.deepspeed.run(entrypoint="train.py")`.

        @@ Returns
        -------
        DeepspeedExecutor
            What runs scripts and functions in the ranks of this gang.
    """

    name = "deepspeed"
    distributions = ("deepspeed", "torch")
    defaults: ClassVar[dict[str, Any]] = {
        **GangDecorator.defaults,
        **RESTARTS,
        "transport": "auto",
        "worker_polling_freq": None,
        "use_sudo": False,
    }

    def check_attributes(self) -> None:
        """Raise BadAttribute for a value that is not valid."""
        super().check_attributes()
        RestartPolicy.of(self)
        if self.attributes["transport"] not in TRANSPORTS:
            listed = ", ".join(map(repr, TRANSPORTS))
            raise BadAttribute(f"@deepspeed(transport={self.attributes['transport']!r}): it is one of {listed}.")

    def ranks(self, gpus: int, cpus: int) -> int:
        """The slots that the step asks for, or that the node has GPUs."""
        return self.gpus or gpus or self.cpus or 1

    def preflight(self) -> None:
        """Raise DeepspeedMissing where the ranks would not find DeepSpeed."""
        if importlib.util.find_spec("deepspeed") is None:
            raise DeepspeedMissing(package_missing(self.task.step_name, "DeepSpeed", "deepspeed"))

    def form(self, gang: Gang) -> dict[str, object]:
        """What the step finds on ``current``."""
        prefix = self.results_prefix(DEEPSPEED_SUFFIX)
        slots = self.gpus or gang.node.gpus or own_neuron_cores(gang) or self.cpus or own_slots(gang)
        nodes = gang.all_gather({"slots": slots, "missing": missing_tools()})
        executor = DeepspeedExecutor(
            gang,
            self.flow_datastore,
            prefix,
            slots=[node["slots"] for node in nodes],
            transport=self.attributes["transport"],
            missing=[node["missing"] for node in nodes],
            is_gpu=bool(self.gpus or gang.node.gpus),
            worker_polling_freq=self.attributes["worker_polling_freq"],
            policy=RestartPolicy.of(self),
        )
        return {"deepspeed": executor}

"""``@tensorflow``: TF_CONFIG for the nodes of a gang."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from typing import Any, ClassVar

from ...core.attributes import whole_number
from ...core.exceptions import BadAttribute, package_missing
from ...core.gang.gang import Gang
from ...core.gang.restarts import WARM, RestartPolicy
from ...core.logs import say
from ...core.step.decorator import GangDecorator
from .exceptions import TensorflowMissing, TooLate
from .known_errors import PEER_LOST, advice
from .launcher import TensorflowExecutor
from .roles import Roles

SUFFIX = "mf.tensorflow"
"""The folder of results in the datastore."""


class TensorflowDecorator(GangDecorator):
    """
    Runs the step on every node of a gang, with a TF_CONFIG that lists all of them for TensorFlow.

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
        How often the ranks of one `current.tensorflow.run` are started again, on the same nodes, when one has failed.
    restart_window : float, optional, default 0
        Seconds in which restarts are counted; 0 is the whole call.
    restart_on : callable, optional, default None
        Gets what has failed, and returns whether the ranks are started again. By default failures that another try
        would meet again end the step at once: an import error, a wrong argument, an exception before any progress.
    warm : bool, default True
        Whether, with `restarts`, interpreters that have imported the framework wait beside the ranks for a restart.
    chief : bool, default False
        Whether node 0's task is of the type "chief"; else it is worker 0, which does what a chief does.
    ps : int, default 0
        How many nodes are parameter servers, for ParameterServerStrategy: those after the workers.
    evaluator : bool, default False
        Whether the last node's task is of the type "evaluator", which is not in the cluster.

    MF Add To Current
    -----------------
    tensorflow -> metaflow_extensions.gang.launchers.tensorflow.launcher.TensorflowExecutor
        `config`, `is_chief`, `worker_index`, `save_path()`, `data_options()`; `run()` for a process of its own.

        @@ Returns
        -------
        TensorflowExecutor
            This node's place among TensorFlow's tasks.
    """

    name = "tensorflow"
    distributions = ("tensorflow", "tensorflow-cpu", "tf-nightly", "keras")
    defaults: ClassVar[dict[str, Any]] = {
        **GangDecorator.defaults,
        **WARM,
        "chief": False,
        "ps": 0,
        "evaluator": False,
    }
    peer_lost: ClassVar[tuple[str, ...]] = PEER_LOST
    replaces_sigterm = True  # its coordination service does, with the first strategy over several nodes
    _roles = Roles()

    def check_attributes(self) -> None:
        """Raise BadAttribute for a value that is not valid."""
        super().check_attributes()
        RestartPolicy.of(self)
        servers = whole_number(self.attributes["ps"])
        if servers is None or servers < 0:
            raise BadAttribute(f"@tensorflow(ps={self.attributes['ps']!r}): it is a whole number of nodes, 0 or more.")
        self._roles = Roles(bool(self.attributes["chief"]), servers, bool(self.attributes["evaluator"]))

    def preflight(self) -> None:
        """Raise TensorflowMissing where there is no TensorFlow, and TooLate where it has been used already."""
        if importlib.util.find_spec("tensorflow") is None:
            raise TensorflowMissing(package_missing(self.task.step_name, "TensorFlow", "tensorflow"))
        if is_initialized():
            raise TooLate(
                "TensorFlow was used in this process before the step's body, most likely at the top level of the flow "
                "file: it has started its runtime, which takes no other nodes any more. Import it there if you like, "
                "but make tensors, models and lists of devices in the step's body, or use current.tensorflow.run()."
            )

    def form(self, gang: Gang) -> dict[str, object]:
        """Agree on an address for each node's task, and set TF_CONFIG."""
        roles = self._roles.of_one_node() if self._is_spun else self._roles
        roles.check(gang.num_nodes)
        prefix = self.results_prefix(SUFFIX)
        policy = RestartPolicy.of(self)
        executor = TensorflowExecutor.form(gang, roles, self.flow_datastore, prefix, policy)
        if executor.is_users:
            say(f"TF_CONFIG is your own: {os.environ['TF_CONFIG']}")
        else:
            os.environ["TF_CONFIG"] = json.dumps(executor.config)
        return {"tensorflow": executor}

    def advice(self, error: BaseException) -> str:
        """Advice about errors that TensorFlow raises on several nodes."""
        return advice(error)


def is_initialized() -> bool:
    """Whether TensorFlow's runtime has been started in this process."""
    module = sys.modules.get("tensorflow.python.eager.context")
    context = getattr(module, "_context", None)
    return bool(getattr(context, "_initialized", False))

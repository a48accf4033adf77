"""``@jax``: JAX's processes on the nodes of a gang."""

from __future__ import annotations

import atexit
import importlib.util
import sys
from collections.abc import Callable
from typing import Any, ClassVar

from ...core.exceptions import package_missing
from ...core.gang.gang import Gang, offered
from ...core.ranks import quick_exit
from ...core.step.decorator import GangDecorator
from .cluster import Place, tell_jax
from .exceptions import JaxMissing
from .peer_lost import PEER_LOST


class JaxDecorator(GangDecorator):
    """
    Runs the step on every node of a gang, where `jax.distributed.initialize()` finds the other nodes.

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

    MF Add To Current
    -----------------
    jax -> metaflow_extensions.gang.launchers.jax.cluster.Place
        `coordinator_address`, `process_id`, `num_processes`, for those who give them to JAX themselves.

        @@ Returns
        -------
        Place
            This node's process among all.
    """

    name = "jax"
    distributions = ("jax", "jaxlib")
    peer_lost: ClassVar[tuple[str, ...]] = PEER_LOST
    aborts_with_others = True
    _gang: Gang | None = None

    def preflight(self) -> None:
        """Raise JaxMissing where there is no JAX."""
        if importlib.util.find_spec("jax") is None:
            raise JaxMissing(package_missing(self.task.step_name, "JAX", "jax"))

    def offer(self, free_port: Callable[[], int]) -> dict[str, Any]:
        """A port of node 0 for JAX's coordinator."""
        return {"port": free_port()}

    def form(self, gang: Gang) -> dict[str, object]:
        """Register the gang with JAX."""
        self._gang = gang
        port = offered(gang)["port"]
        host = f"[{gang.main_address}]" if ":" in gang.main_address else gang.main_address
        place = Place(f"{host}:{port}", gang.node_index, gang.num_nodes)
        tell_jax(place)
        return {"jax": place}

    def leave(self, ok: bool) -> None:
        """End this process's part in JAX's cluster, together with the others'.

        JAX does it when Python ends, which is too late for a gang whose nodes end one after the other, and never comes
        to an end where another node is gone.
        """
        jax = sys.modules.get("jax")
        if ok and self._gang is not None:
            self._gang.barrier()
            if jax is not None:
                jax.distributed.shutdown()
        elif jax is not None:
            forget_own_end()
            quick_exit.at_exit(1)


def forget_own_end() -> None:
    """JAX's exit handler waits for the other nodes, which may be gone; its client does so when it is finalized."""
    clean_up = getattr(sys.modules.get("jax._src.api"), "clean_up", None)
    if clean_up is not None:
        atexit.unregister(clean_up)

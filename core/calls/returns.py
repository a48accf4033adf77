"""What comes back of a launcher's run: what a function returned in its ranks, and folders of results.

Every launcher whose body runs on all nodes ends a call like this.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..exceptions import BadAttribute, GangException
from ..gang.gang import Gang
from ..logs import say
from ..ranks.functions import FunctionCall, load_return, read_returns
from ..storage.results import BadFolder, cloud_folder, push_folder
from .entrypoint import Entrypoint

_NO_RESTART = (
    " The ranks were not started again: code 0 is that of a rank that has ended well. Have it end with another one, as "
    "by os._exit(1)."
)
"""Added where there are restarts."""


@dataclass(frozen=True)
class Results:
    """A folder that each node puts into the flow's datastore when a call has ended well.

    Attributes
    ----------
    flow_datastore : FlowDataStore
    local_dir : path, optional
        The folder on this node.
    cloud : str, optional
        Where all nodes' results go, each into a folder of its index; None where nothing is to be pushed.
    """

    flow_datastore: Any
    local_dir: str | os.PathLike[str] | None = None
    cloud: str | None = None

    @classmethod
    def read(
        cls,
        flow_datastore: Any,
        prefix: str,
        push_results_dir_to_cloud: bool,
        local_output_dir: str | os.PathLike[str] | None,
        cloud_output_dir: str | None,
    ) -> Results:
        """What the user said to ``run()``, looked at before anything is started; ``prefix`` is the step's own place.

        Raises
        ------
        BadAttribute
            There is nothing to push, or ``cloud_output_dir`` leads elsewhere.
        """
        if not push_results_dir_to_cloud:
            return cls(flow_datastore)
        if local_output_dir is None:
            raise BadAttribute("push_results_dir_to_cloud needs local_output_dir, the folder that is to be pushed.")
        try:
            cloud = f"{prefix}/{cloud_folder(local_output_dir, cloud_output_dir)}"
        except BadFolder as error:
            raise BadAttribute(f"cloud_output_dir: {error}") from None
        return cls(flow_datastore, local_output_dir, cloud)

    def push(self, node_index: int) -> str | None:
        """Where all nodes' results are; None where there was nothing to push. Raises BadAttribute where it is no
        folder.
        """
        if self.cloud is None or self.local_dir is None:
            return None
        own = f"/{node_index}"
        try:
            location = push_folder(self.flow_datastore, self.local_dir, self.cloud + own, say)
        except BadFolder as error:
            raise BadAttribute(f"local_output_dir: {error}") from None
        if location is None:
            return None
        say(f"Pushed {os.fspath(self.local_dir)} to {location}")
        return location.removesuffix(own)


def result_of_run(
    gang: Gang,
    what: Entrypoint,
    nprocs: Sequence[int],
    results: Results,
    failure: type[GangException],
    place: int | None,
    has_restarts: bool = False,
) -> Any:
    """What the user's call of ``run()`` gives: a function's returns (see :func:`collect`), or where a script's results
    were pushed to; of a node without ranks, nothing is pushed. Every node must call it.
    """
    location = results.push(gang.node_index) if place is not None else None
    return location if what.call is None else collect(gang, what.call, nprocs, failure, place, has_restarts)


def collect(
    gang: Gang,
    call: FunctionCall,
    nprocs: Sequence[int],
    failure: type[GangException],
    place: int | None,
    has_restarts: bool = False,
) -> list[Any]:
    """What the ranks returned, in their order: of all nodes on node 0, of the node itself on the others.

    Every node must call it. Raises ``failure`` where a rank of this node returned nothing, or what the step cannot
    load; and on node 0 where a node was lost before it had given what its ranks returned.

    Parameters
    ----------
    nprocs : sequence of int
        Ranks on each node that has some, by node rank.
    place : int or None
        This node's rank among these; None where it has no ranks.
    has_restarts : bool
        Whether ranks that fail are started again, so that the message says why these were not.
    """
    own = read_returns(call)
    first, expected = (0, 0) if place is None else (sum(nprocs[:place]), nprocs[place])
    if len(own) != expected:
        raise failure(
            without_return(call.name, own, first, expected, f" on node {gang.node_index}") + _NO_RESTART * has_restarts
        )
    gathered = gang.gather(sorted(own.items()))
    wanted = own.items() if gathered is None else [pair for node in gathered if node is not None for pair in node]
    if gathered is not None and len(wanted) < sum(nprocs):
        raise failure(
            f"{call.name}() has returned in all ranks, but a node was lost before it had given node 0 what it returned "
            f"there: {len(wanted)} of {sum(nprocs)} values have come."
        )
    return [_loaded(call, rank, value, failure) for rank, value in sorted(wanted)]


def without_return(name: str, own: Mapping[int, Any], first: int, expected: int, where: str = "") -> str:
    """A sentence about the ranks that ended with code 0 where the function ``name`` has not returned.

    Parameters
    ----------
    own : mapping
        What returned, by rank.
    first, expected : int
        The first rank, and the number of ranks, that were to return.
    where : str
        " on node 1", or "".
    """
    missing = [str(rank) for rank in range(first, first + expected) if rank not in own]
    shown = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
    return (
        f"{name}() returned in {len(own)} of the {expected} ranks{where}: {'rank' if len(missing) == 1 else 'ranks'} "
        f"{shown} ended with code 0 without returning, as by os._exit(0)."
    )


def _loaded(call: FunctionCall, rank: int, value: bytes, failure: type[GangException]) -> Any:
    try:
        return load_return(value)
    except Exception as error:
        raise failure(
            f"What {call.name}() returned in rank {rank} cannot be loaded in the step: {type(error).__name__}: {error}."
        ) from error

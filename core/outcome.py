"""What comes back of a launcher's run: what a function returned in its ranks, and folders of results.

Every launcher whose body runs on all nodes ends a call like this.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .context import Gang
from .failure import BadAttribute, GangException
from .functions import FunctionCall, load_return, read_returns
from .logs import say
from .results import BadFolder, cloud_folder, push_folder


def collect(gang: Gang, call: FunctionCall, nprocs: Sequence[int], failure: type[GangException]) -> list[Any]:
    """What the ranks returned, in their order: of all nodes on node 0, of the node itself on the others.

    Every node must call it. Raises ``failure`` where a rank of this node returned nothing, or what the step cannot
    load.

    Parameters
    ----------
    nprocs : sequence of int
        Ranks on each node, by index.
    """
    own = read_returns(call)
    expected = nprocs[gang.node_index]
    if len(own) != expected:
        raise failure(
            f"{call.name}() returned in {len(own)} of the {expected} ranks on node {gang.node_index}: the others "
            "ended their process without returning, as os._exit() does."
        )
    gathered = gang.all_gather(sorted(own.items()))
    wanted = [pair for node in gathered for pair in node] if gang.is_control else sorted(own.items())
    return [_loaded(call, rank, value, failure) for rank, value in sorted(wanted)]


def _loaded(call: FunctionCall, rank: int, value: bytes, failure: type[GangException]) -> Any:
    try:
        return load_return(value)
    except Exception as error:
        raise failure(
            f"What {call.name}() returned in rank {rank} cannot be loaded in the step: {type(error).__name__}: {error}."
        ) from error


def cloud_prefix(
    results_prefix: str, local_dir: str | os.PathLike[str] | None, cloud_dir: str | None, push: bool
) -> str | None:
    """Where all nodes' results will go; None without ``push``. Looked at before anything is started.

    Raises
    ------
    BadAttribute
        There is no ``local_dir``, or ``cloud_dir`` leads elsewhere.
    """
    if not push:
        return None
    if local_dir is None:
        raise BadAttribute("push_results_dir_to_cloud needs local_output_dir, the folder that is to be pushed.")
    try:
        return f"{results_prefix}/{cloud_folder(local_dir, cloud_dir)}"
    except BadFolder as error:
        raise BadAttribute(f"cloud_output_dir: {error}") from None


def push(gang: Gang, flow_datastore: Any, local_dir: str | os.PathLike[str] | None, cloud: str | None) -> str | None:
    """Puts this node's results into a folder of its index below ``cloud``; where all nodes' results are.

    None without ``cloud``, and where there was nothing to push. Raises BadAttribute where the folder is none.
    """
    if cloud is None or local_dir is None:
        return None
    own = f"/{gang.node_index}"
    try:
        location = push_folder(flow_datastore, local_dir, cloud + own, say)
    except BadFolder as error:
        raise BadAttribute(f"local_output_dir: {error}") from None
    if location is None:
        return None
    say(f"Pushed {os.fspath(local_dir)} to {location}")
    return location.removesuffix(own)

"""``metaflow-gang traces``: the traces of torch's profiler that the ranks of a gang have left, listed or fetched."""

from __future__ import annotations

import os
import sys

from ..core.exceptions import GangException
from ..core.storage.objects import BadKey, Objects, storage_of
from ..core.storage.traces import traces_prefix
from .command import refuse
from .logs import the_only
from .run_tasks import GangOfRun, NotFound, gangs_of

_MEGABYTE = 1 << 20


def traces(pathspec: str, where: str | None, attempt: int | None, to: str | None) -> int:
    """List the traces of the one gang of ``pathspec``, or fetch them; returns the exit code.

    Parameters
    ----------
    pathspec : str
    where : str, optional
        Metaflow's metadata: "local@FOLDER" or "service@URL".
    attempt : int, optional
        By default the latest.
    to : str, optional
        The folder for them; without it they are listed.
    """
    try:
        gang = the_only(gangs_of(pathspec, where))
        number = gang.attempt(attempt)
        found = gang.traces(number)
        if to is not None and found:
            objects = _objects(gang, number)
    except (NotFound, GangException) as error:
        return refuse(str(error))
    code = 0
    for node, record in found.items():
        for file in record["files"]:
            rank = "" if file["rank"] is None else f" [rank {file['rank']}]"
            place = f"{record['where']}/{file['name']}"
            if to is not None:
                place = os.path.join(to, f"node-{node}", *file["name"].split("/"))
                try:
                    objects.get_file(f"{node}/{file['name']}", place)
                except (GangException, BadKey, OSError) as error:
                    code = refuse(f"node {node}{rank}: {error}")
                    continue
            print(f"[node {node}]{rank} {file['bytes'] / _MEGABYTE:,.1f} MiB {place}")
        if record["left_out"]:
            print(f"[node {node}] {record['left_out']}", file=sys.stderr)
    if not found:
        print(
            f"Attempt {number} of {gang.pathspec} has no traces of torch's profiler. Ranks write them into the folder "
            "that METAFLOW_GANG_TRACES names.",
            file=sys.stderr,
        )
    return code


def _objects(gang: GangOfRun, attempt: int) -> Objects:
    """What all nodes have stored of an attempt. Raises GangException where this machine cannot open the datastore."""
    kind, root = gang.datastore()
    flow, run, step = gang.step.split("/")
    return Objects(storage_of(kind, root), traces_prefix(flow, run, step, gang.control, attempt))

"""One rank's process, for a launcher's plan: what the user wants run, under the wrapper that records an exception."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from ..gang.launch_plan import Process
from ..ranks.functions import RANK_MAIN
from .entrypoint import Entrypoint


def rank_process(
    what: Entrypoint, rank: int, env: Mapping[str, str], folder: str, key: str, several: bool = False, title: str = ""
) -> Process:
    """A Python script, or a function, in a process of its own that has a rank.

    Parameters
    ----------
    what : Entrypoint
        A script or a function: see :meth:`~.run.Runs.entrypoint`.
    rank : int
        Global rank; the process finds it in RANK.
    env : mapping
        The process's complete environment, but for RANK.
    folder : str
        The gang's private folder, for the file in which the rank records its exception.
    key : str
        Of this launch, different for each in a gang.
    several : bool
        Whether this node has several ranks, so that the lines of each begin with its number.
    title : str
        How a message calls the process; "rank 3" where "".

    Example
    -------
    ``LaunchPlan(tuple(rank_process(what, rank, env, gang.folder, attempt.key, True) for rank in (2, 3)))``
    """
    as_script = () if what.call is not None else (RANK_MAIN, "--script")
    error_file = os.path.join(folder, f"{key}-rank-{rank}-error.json")
    return Process(
        argv=(sys.executable, "-u", *as_script, what.target, *what.arguments),
        env={**env, "RANK": str(rank), "TORCHELASTIC_ERROR_FILE": error_file},
        cwd=os.getcwd(),
        title=title or f"rank {rank}",
        rank=rank,
        label=f"[rank {rank}] " if several else "",
        error_file=error_file,
        records_exceptions=True,
    )

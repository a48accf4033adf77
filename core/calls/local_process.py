"""A script, or a function, in one process of this node: for frameworks whose own runtime finds the other nodes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping

from ..exceptions import GangException, ProcessFailed
from ..gang.gang import Gang
from ..gang.launch_plan import LaunchPlan, Process
from ..guard.text import indent
from ..ranks.functions import RANK_MAIN, load_error
from .entrypoint import Entrypoint


def run_program(
    gang: Gang,
    what: Entrypoint,
    env: Mapping[str, str],
    failed: type[GangException],
    peer_lost: tuple[str, ...] = (),
) -> None:
    """Runs ``what`` on this node, and waits for it. Its rank is the node's index.

    Parameters
    ----------
    env : mapping
        Added to the step's environment.
    failed : type
        What is raised where it failed; a function's own exception is raised as it is.
    peer_lost : tuple of str
        As in :class:`LaunchPlan`.
    """
    as_script = () if what.call is not None else (RANK_MAIN, "--script")
    rank = gang.node_index
    error_file = os.path.join(gang.folder, f"program-{rank}-error.json")
    if os.path.exists(error_file):
        os.remove(error_file)  # of an earlier one, which the step has caught
    process = Process(
        argv=(sys.executable, "-u", *as_script, what.target, *what.arguments),
        env={**os.environ, "RANK": str(rank), "TORCHELASTIC_ERROR_FILE": error_file, **env},
        cwd=os.getcwd(),
        title=what.name,
        rank=rank,
        error_file=error_file,
        records_exceptions=True,
    )
    try:
        gang.launch(LaunchPlan((process,), peer_lost=peer_lost))
    except ProcessFailed as failure:
        error = explain(failure, "", f"node {rank}", failed, peer_lost)
        raise error from error.__cause__


def explain(
    failure: ProcessFailed, what: str, where: str, failed: type[GangException], peer_lost: tuple[str, ...] = ()
) -> Exception:
    """The exception for the step: a rank's own where a function of this node raised it, else one that tells of it.

    Parameters
    ----------
    what : str
        What was running, "train.py" or "train()", where the process's title does not say it.
    where : str
        "node 1", "the gang" or "this machine".
    """
    detail = failure.detail
    if failure.exit_code > 0:
        # Where a peer was first, another's words are told: to load a framework for its exception takes seconds.
        blames_a_peer = any(re.search(pattern, detail) for pattern in peer_lost)
        error = None if blames_a_peer else load_error(failure.error_file, f"{failure.title} on {where}")
        if error is not None:
            return error
    shown = f":\n{indent(detail)}" if detail.strip() else ", and printed nothing."
    running = f", running {what}," if what else ""
    return failed(f"{failure.title} on {where}{running} {failure.ended}{shown}")

"""A script, or a function, in one process of this node: for frameworks whose own runtime finds the other nodes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace

from ..exceptions import GangException, ProcessFailed
from ..gang.gang import Gang
from ..gang.launch_plan import LaunchPlan, Process
from ..guard.text import indent
from ..ranks.functions import load_error
from .entrypoint import Entrypoint
from .rank_process import rank_process


def program(what: Entrypoint, gang: Gang, env: Mapping[str, str], key: str) -> Process:
    """``what`` as a process of this node. Its rank is the node's index.

    Parameters
    ----------
    env : mapping
        Added to the step's environment.
    key : str
        Of this launch, for the name of its error file.
    """
    process = rank_process(what, gang.node_index, {**os.environ, **env}, gang.folder, key, title=what.name)
    return replace(process, env={**process.env, **env})  # a user's own RANK counts


def run_program(gang: Gang, what: Entrypoint, env: Mapping[str, str], failed: type[GangException]) -> None:
    """Run ``what`` on this node, and wait for it. Its rank is the node's index.

    Parameters
    ----------
    env : mapping
        Added to the step's environment.
    failed : type
        What is raised where it failed; a function's own exception is raised as it is.
    """
    process = program(what, gang, env, "program")
    if process.error_file is not None and os.path.exists(process.error_file):
        os.remove(process.error_file)  # of an earlier one, which the step has caught
    try:
        gang.launch(LaunchPlan((process,)))
    except ProcessFailed as failure:
        error = explain(failure, "", f"node {gang.node_index}", failed)
        raise error from error.__cause__


def explain(
    failure: ProcessFailed,
    what: str,
    where: str,
    failed: type[GangException],
    peer_lost: tuple[str, ...] = (),
    after_signals: bool = False,
) -> Exception:
    """The exception for the step: a rank's own where a function of this node raised it, else one of type ``failed``.

    Parameters
    ----------
    what : str
        What was running, "train.py" or "train()", where the process's title does not say it.
    where : str
        "node 1", "the gang" or "this machine".
    after_signals : bool
        Whether the function's own exception counts, too, where the process was then killed by a signal.
    """
    detail = failure.detail
    if failure.exit_code > 0 or after_signals:
        # Where a peer failed first, its failure is reported: loading a framework for this exception would take seconds.
        blames_a_peer = any(re.search(pattern, detail) for pattern in peer_lost)
        error = None if blames_a_peer else load_error(failure.error_file, f"{failure.title} on {where}")
        if error is not None:
            return error
    shown = f":\n{indent(detail)}" if detail.strip() else ", and printed nothing."
    running = f", running {what}," if what else ""
    return failed(f"{failure.title} on {where}{running} {failure.ended}{shown}")

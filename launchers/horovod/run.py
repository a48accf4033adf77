"""Horovod without MPI: ``horovod_run`` starts its ranks on all nodes of a gang, with the variables of its gloo mode.

Horovod itself is imported in processes of their own only: in the ranks, and in the server through which they find each
other, which is Horovod's and runs on control.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from metaflow import current

from ...core.attributes import check_variables, read_nproc
from ...core.calls.misplaced_arguments import suggesting
from ...core.calls.run import PortTry, Runs
from ...core.dry_run.call import show_instead
from ...core.exceptions import BadAttribute, PortTaken, ProcessFailed, ToolMissing
from ...core.gang.gang import Gang
from ...core.gang.launch_plan import Process
from ...core.machine.network import interface_for
from .plan import DEFAULTS, horovod_environment, plan, unique_names

SERVER_READY = "rendezvous server is listening on "
ADDRESS_IN_USE = "Address already in use"
SERVER_START_S = 60.0
"""Seconds for Python to start and import Horovod's server, on a busy machine and from a slow disk."""

_runs: Runs | None = None
"""Of the gang of this task."""

_HOW_TO_BUILD = (
    "Build it where torch is installed: HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 HOROVOD_WITH_PYTORCH=1 pip install "
    "--no-build-isolation horovod, with CMAKE_CXX_STANDARD raised to 20 in its two CMakeLists.txt for torch 2.13 "
    "(docs/horovod.md has the commands), or give @kubernetes or @batch an image that has it."
)


@suggesting("horovod_run", {"entrypoint_args": ()})
def horovod_run(
    entrypoint: str | os.PathLike[str],
    entrypoint_args: Mapping[str, Any] | Sequence[Any] | None = None,
    nproc_per_node: int | str | None = None,
    env: Mapping[str, str] | None = None,
    dry_run: bool = False,
) -> None:
    """Run a script in every rank of a Horovod world over gloo, on all nodes at once. Every node has to call it.

    It belongs into a step whose body runs on all nodes, as @gang's does; ``hvd.init()`` in the script finds the others.
    Returns when all ranks of this node have ended well. Each call is a world of its own.

    Parameters
    ----------
    entrypoint : str or path
        A Python script.
    entrypoint_args : dict or list, optional
        Its arguments: {"epochs": 3} becomes ``--epochs 3``, a list passes as it is.
    nproc_per_node : int or str, optional
        Ranks on this node: a number, "gpu", "cpu" or "auto" (the node's GPUs, or 1), which is the default. Nodes may
        differ.
    env : mapping of str to str, optional
        Added to the task's environment for the ranks of this node, e.g. {"HOROVOD_GLOO_TIMEOUT_SECONDS": "120"}.
    dry_run : bool
        Whether what would start is only shown, in the log of node 0 (docs/dry-runs.md). Nothing starts.

    Raises
    ------
    BadAttribute
        An argument that is not valid, or a step without a gang or with a body on control alone. Nothing was started.
    ToolMissing
        This Python has no Horovod.
    ProcessFailed
        A rank of this node failed, or on control the server of the rendezvous.
    GangFailed
        Another node failed first.

    Example
    -------
    ``horovod_run("train.py", {"epochs": 3}, nproc_per_node=2)``
    """
    gang = _gang()
    _require_script(entrypoint)
    runs = _runs_of(gang)
    with show_instead(gang, dry_run, "horovod_run()"), runs.entrypoint(entrypoint, entrypoint_args) as what:
        environ = {**os.environ, **_checked(env)}
        node = gang.node
        slots_here = read_nproc("auto" if nproc_per_node is None else nproc_per_node, node.gpus, node.cpus)
        _require_horovod()
        _require_ipv4(gang.main_address)
        own = {"slots": slots_here, "interface": interface_for(gang.another_address()), "port": runs.port(None)}
        answers = runs.agree(own)
        slots = [answer["slots"] for answer in answers]
        interfaces = [answer["interface"] for answer in answers]
        names = unique_names([node.hostname for node in gang.nodes])
        first = sum(slots[: gang.node_index])

        def start(attempt: PortTry) -> None:
            if gang.broadcast(_start_server(gang, names, slots, attempt) if gang.is_control else None):
                raise PortTaken("Another program took the port that was chosen for Horovod's rendezvous server.")
            world = horovod_environment(names, slots, interfaces, gang.main_address, attempt.port)
            variables = world[first : first + slots_here]
            chosen = {name: variables[0][name] for name in DEFAULTS if name in variables[0] and name not in environ}
            runs.show_variables(chosen)
            prefix = os.path.join(gang.folder, f"horovod-{attempt.key}")
            gang.launch(plan([what.target, *what.arguments], variables, environ, prefix))

        runs.launch(start, what, answers[0]["port"], is_ours=True)


def _gang() -> Gang:
    if current.get("mpi") is not None:
        raise BadAttribute(
            "horovod_run() starts ranks on the node that calls it, and the body of an @mpi step runs on node 0 alone. "
            'Use @gang instead of @mpi, or, with a Horovod that was built with MPI, current.mpi.run(program="...").'
        )
    gang = current.get("gang")
    if not isinstance(gang, Gang):
        raise BadAttribute(
            "horovod_run() was called outside of a gang. Call it in the body of a step with @gang that the step before "
            "starts by self.next(..., num_parallel=N)."
        )
    return gang


def _runs_of(gang: Gang) -> Runs:
    """What the calls of this task have in common: its gang is one for all of them."""
    global _runs
    if _runs is None or _runs.gang is not gang:
        _runs = Runs(gang, ProcessFailed, explains=lambda failure, what, where: failure)
    return _runs


def _require_script(entrypoint: object) -> None:
    if not isinstance(entrypoint, str | os.PathLike):
        raise BadAttribute(
            f"horovod_run() runs a script, not a {type(entrypoint).__name__}: give its path, as in "
            'horovod_run("train.py").'
        )


def _checked(env: Mapping[str, str] | None) -> Mapping[str, str]:
    known = set(horovod_environment(["a"], [1], [None], "", 0)[0]) - set(DEFAULTS)
    check_variables("horovod_run", env)
    for name in env or {}:
        if name in known:
            raise BadAttribute(f"horovod_run(env={{{name!r}: ...}}): every rank has a {name} of its own. Leave it out.")
    return env or {}


def _require_horovod() -> None:
    """Raise where the ranks, whose working folder, path and interpreter are the task's, would not find Horovod."""
    found = importlib.util.find_spec("horovod")
    if found is None or found.origin is None:
        raise ToolMissing(f"horovod_run() needs Horovod, and {sys.executable} has none. {_HOW_TO_BUILD}")
    if found.submodule_search_locations is None:
        raise BadAttribute(
            f"{found.origin} hides the package horovod from `import horovod`. Give the file another name."
        )


def _require_ipv4(address: str) -> None:
    if ":" in address:
        raise BadAttribute(
            f"Horovod's gloo rendezvous knows IPv4 alone, and the nodes of this gang reach control at {address}. Give "
            "them an IPv4 network, or use @mpi."
        )


def _start_server(gang: Gang, names: Sequence[str], slots: Sequence[int], attempt: PortTry) -> bool:
    """Start Horovod's rendezvous server on this node, which runs until the gang ends.

    Returns whether another program has taken its port, and the next one can be tried.
    """
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rendezvous.py")
    hosts = ",".join(f"{name}:{count}" for name, count in zip(names, slots, strict=True))
    server = Process(
        argv=(sys.executable, "-u", script, gang.main_address, str(attempt.port), hosts),
        env=dict(os.environ),
        title="Horovod's rendezvous server",
    )
    try:
        gang.start(server, SERVER_READY, SERVER_START_S)
    except ProcessFailed as failure:
        if attempt.is_ours and ADDRESS_IN_USE in failure.tail:
            return True
        raise
    return False

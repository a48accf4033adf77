"""The command of DeepSpeed's launcher on one node, its hostfile, and the record for each rank's wrapper, as data."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core.gang.launch_plan import LaunchPlan, Process
from ...core.ranks import rank_wrapper
from ...core.ranks.peer_lost import RANK_PEER_LOST, port_taken
from ...core.ranks.rank_report import REPORT
from ...core.remote_shell.choice import NO_SCHEDULERS, in_allocation
from ...core.remote_shell.hostfile import hostfile
from .layout import Layout
from .options import Options

RANK_JOB = os.path.abspath(rank_wrapper.__file__)

REPORT_GRACE_S = 0.5
"""Seconds for the launcher to end by itself once a rank has failed: it polls once a second and reports nothing new."""

RANKS_OWN = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
"""Variables that DeepSpeed's launcher sets for each rank."""

# DeepSpeed writes variables of these names on the command line of pdsh and mpirun, for everybody to read, and those of
# NCCL into the log.
_SHOWN = re.compile(r"MLFLOW|MV2|UCX|PYTHON(?!PATH$|HOME$|UNBUFFERED$)|.*NCCL")


# With --no_python DeepSpeed tries to execute its own helper for these, which is not executable.
_WITH_HELPER = ("mpich", "impi")


@dataclass(frozen=True)
class Job:
    """One call of ``current.deepspeed.run``, with all values that the nodes have agreed on.

    Parameters
    ----------
    name : str
        Of this try of this call, in this gang: "deepspeed-1-run-1-0".
    layout : Layout
    node_index : int
        This node.
    options : Options
    transport : str
        "none", "ssh" or "channel".
    rsh : str
        The folder that has the program ``ssh`` for it; "" with "none".
    interface : str
        Through which this node reaches the others; "" where that is not known.
    main_address, port : str, int
        Where ranks meet: on the first node of the layout.
    port_is_ours : bool
        Whether another may be chosen where a foreign program has it.
    environ : mapping
        What the launcher gets, without what it would show to others: :func:`unshown`.
    folder : str
        The gang's private folder on this node.
    is_root : bool
    restartable : bool
        Whether the ranks may be started again.
    """

    name: str
    layout: Layout
    node_index: int
    options: Options
    transport: str
    rsh: str
    interface: str
    main_address: str
    port: int
    port_is_ours: bool
    environ: Mapping[str, str] = field(repr=False)
    folder: str
    is_root: bool
    python: str = sys.executable
    restartable: bool = False

    @property
    def hostfile(self) -> str:
        """The path of this call's hostfile."""
        return os.path.join(self.folder, f"{self.name}-hostfile")

    @property
    def shared_memory(self) -> str:
        """A pattern for what this call's ranks have in shared memory, which DeepSpeed never removes."""
        return f"/dev/shm/deepspeed_allreduce_buffer_*_{glob.escape(self.main_address)}_{self.port}_*"

    @property
    def starts_here(self) -> bool:
        """Whether this node has a launcher to start: with "none" each that takes part has, else control for all."""
        return self.node_index in self.layout.nodes if self.transport == "none" else self.node_index == 0


def hostfile_text(job: Job) -> str:
    """One line for each node that takes part."""
    return hostfile(job.layout.hostfile_entries(), "deepspeed")


def plan(job: Job) -> LaunchPlan:
    """DeepSpeed's launcher on this node. A pure function."""
    argv = [job.python, "-m", "deepspeed.launcher.runner", f"--hostfile={job.hostfile}"]
    argv += [f"--master_addr={job.main_address}", f"--master_port={job.port}", *job.options.passed_on()]
    if job.layout.include():
        argv.append(f"--include={job.layout.include()}")
    if job.transport == "none":
        argv += ["--no_ssh", f"--node_rank={job.layout.nodes.index(job.node_index)}"]
        environ = dict(job.environ)
    else:
        argv += ["--no_ssh_check", *_remote(job)]
        environ = launcher_environment(job)
    if job.options.launcher in _WITH_HELPER:
        argv += ["--no_local_rank", RANK_JOB, job.name]
    else:
        argv += ["--no_python", "--no_local_rank", job.python, "-I", "-S", RANK_JOB, job.name]
    process = Process(
        argv=tuple(argv),
        env={**environ, rank_wrapper.FOLDER: job.folder},
        title="deepspeed",
        error_file=os.path.join(job.folder, job.name + "-rank-{rank}-error.json"),
        report=REPORT,
        report_grace=REPORT_GRACE_S,
        records_exceptions="no_python" not in job.options.values,
    )
    return LaunchPlan(
        (process,),
        peer_lost=RANK_PEER_LOST,
        port_taken=port_taken(job.port) if job.port_is_ours else None,
        key=f"{job.name}-{job.port}",
        restartable=job.restartable,
    )


def _remote(job: Job) -> list[str]:
    """The options by which control starts the ranks of other nodes."""
    launcher = job.options.launcher or "pdsh"
    own = job.options.values.get("launcher_args") or ""
    added: list[str] = []
    if launcher == "pdsh":
        added.append("-N")  # ranks' lines as they are, and not after their node's name
    elif launcher == "openmpi":
        added += ["--leave-session-attached", "--bind-to none"]
        if job.interface and "btl_tcp_if_include" not in own:
            added.append(f"--mca btl_tcp_if_include {job.interface}")  # DeepSpeed's own choice is eth0
    elif launcher in _WITH_HELPER:
        added.append("-genvnone")  # ranks have their own node's environment; Hydra would give them control's
    argv = [f"--launcher={launcher}"]
    words = " ".join([*added, own]).strip()
    if words:
        argv.append(f"--launcher_args={words}")
    if job.layout.nodes != (0,):
        argv.append("--force_multi")  # DeepSpeed takes a single node for this one
    return argv


def unshown(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that DeepSpeed's launcher may have; ranks get the others by way of their wrapper."""
    return {name: value for name, value in environ.items() if not _SHOWN.match(name)}


def launcher_environment(job: Job) -> dict[str, str]:
    """The environment of control's launcher where it starts ranks on other nodes: how it reaches them."""
    environ = dict(job.environ)
    path = environ.get("PATH", os.defpath)
    ssh = os.path.join(job.rsh, "ssh")
    environ.update(
        PATH=f"{job.rsh}{os.pathsep}{path}",
        PDSH_SSH_ARGS_APPEND="",
        DS_ENV_FILE=os.path.join(job.folder, "no-such-file"),  # the user's file has been read already
        # A list, of which the first that is there is taken: the daemons on the other nodes get it, too, look for it
        # and crash where nothing is found. This node's is nowhere else; they start nothing, so any program will do.
        OMPI_MCA_plm_rsh_agent=f"{ssh}:sh",
        OMPI_MCA_plm_rsh_no_tree_spawn="1",
        PRTE_MCA_plm_ssh_agent=f"{ssh}:sh",
        PRTE_MCA_plm_ssh_no_tree_spawn="1",
        HYDRA_LAUNCHER="ssh",
        HYDRA_LAUNCHER_EXEC=ssh,
    )
    if in_allocation(environ):
        for name, value in NO_SCHEDULERS.items():
            for prefix in ("OMPI_MCA_", "PRTE_MCA_"):
                environ.setdefault(prefix + name, value)
    if job.interface:
        environ.update(OMPI_MCA_oob_tcp_if_include=job.interface, HYDRA_IFACE=job.interface)
    if job.is_root:
        environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        environ.update(PRTE_ALLOW_RUN_AS_ROOT="1", PRTE_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    return environ


def rank_record(
    job: Job,
    program: tuple[str, ...],
    arguments: tuple[str, ...],
    changed: Mapping[str, str | None],
    devices: tuple[str, ...],
    is_function: bool,
) -> dict[str, Any]:
    """The record that :mod:`core.ranks.rank_wrapper` reads on this node.

    Parameters
    ----------
    program, arguments : tuple of str
        What each rank runs; DeepSpeed's ``--local_rank=N`` goes between the two, unless the user wants none.
    changed : mapping
        Variables that differ from those that a rank is started with; None for one that is to be missing.
    devices : tuple of str
        This node's GPUs by the names of CUDA_VISIBLE_DEVICES, where it has been given a part of the machine's.
    is_function : bool
        A function gets no ``--local_rank``.
    """
    own = [*RANKS_OWN, *(("OMP_NUM_THREADS",) if "bind_cores_to_rank" in job.options.values else ())]
    return {
        "program": program,
        "arguments": arguments,
        "set": {name: value for name, value in changed.items() if value is not None},
        "unset": [name for name, value in changed.items() if value is None],
        "launchers_own": own,
        "defaults": {"MASTER_ADDR": job.main_address, "MASTER_PORT": str(job.port)},
        "devices": devices,
        "local_rank": not is_function and "no_local_rank" not in job.options.values,
        "errors": os.path.join(job.folder, job.name),
    }

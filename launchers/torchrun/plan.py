"""What ``current.torch.run`` starts on this node, as data: argv and environment of the ranks, or of the agent."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...core.functions import RANK_CHILD
from ...core.launch import LaunchPlan, Process
from ...core.peer_lost import RANK_PEER_LOST, port_taken
from .options import Options
from .peer_lost import AGENT_REPORT

AGENT_GRACE_S = 1.0
"""The agent gives its ranks longer after SIGTERM. Ours are killed with it, but it may have a summary to write."""

HEAD_START_S = 0.1
"""By how much rank 0 is started before the others, all of which then take the same second to import torch. It opens the
store, and a rank that finds it closed tries again only after 0.25 to 0.75 s."""


@dataclass(frozen=True)
class Job:
    """One call of ``current.torch.run``, with everything that the nodes had to agree upon.

    Parameters
    ----------
    entrypoint : str
        Script, module or program.
    arguments : tuple of str
        Its arguments.
    options : Options
        torchrun's, as the user gave them.
    nprocs : tuple of int
        Processes on each node, by node index.
    node_index : int
    main_address : str
        Of node 0, which has rank 0.
    port : int
        On node 0, for torch's store.
    port_is_ours : bool
        Whether another may be chosen where a foreign program has it.
    launcher : str
        "direct" or "torchrun".
    environ : mapping
        What the processes get, but for what each rank gets of its own. OMP_NUM_THREADS is in it where it is wanted.
    folder : str
        For error files; private to this node and attempt.
    key : str
        What all nodes call this launch.
    """

    entrypoint: str
    arguments: tuple[str, ...]
    options: Options
    nprocs: tuple[int, ...]
    node_index: int
    main_address: str
    port: int
    port_is_ours: bool
    launcher: str
    environ: Mapping[str, str] = field(repr=False)
    folder: str
    key: str
    python: str = sys.executable

    @property
    def first_rank(self) -> int:
        """The global rank of this node's first process."""
        return sum(self.nprocs[: self.node_index])


def plan(job: Job) -> LaunchPlan:
    """The processes of this node. Starts nothing, and asks the system nothing."""
    if job.launcher == "torchrun":
        processes: tuple[Process, ...] = (_agent(job),)
    else:
        processes = tuple(_rank(job, local_rank) for local_rank in range(job.nprocs[job.node_index]))
    return LaunchPlan(
        processes=processes,
        grace=AGENT_GRACE_S if job.launcher == "torchrun" else 0.5,
        peer_lost=RANK_PEER_LOST,
        port_taken=port_taken(job.port) if job.port_is_ours else None,
        key=job.key,
    )


def _rank(job: Job, local_rank: int) -> Process:
    rank = job.first_rank + local_rank
    local_size = job.nprocs[job.node_index]
    error_file = os.path.join(job.folder, f"{job.key}-rank-{rank}-error.json")
    return Process(
        argv=_command(job),
        env={**job.environ, **rank_variables(job, local_rank), "TORCHELASTIC_ERROR_FILE": error_file},
        title=f"rank {rank}",
        rank=rank,
        label=f"[rank {rank}] " if local_size > 1 else "",
        error_file=error_file,
        delay=HEAD_START_S if rank else 0.0,
        records_exceptions=RANK_CHILD in _command(job),
    )


def _command(job: Job) -> tuple[str, ...]:
    """As the agent would start a rank."""
    if "no_python" in job.options.values:
        return (job.entrypoint, *job.arguments)
    python = job.environ.get("PYTHON_EXEC", job.python)
    if "module" in job.options.values:
        return (python, "-u", "-m", job.entrypoint, *job.arguments)
    as_script = () if job.entrypoint == RANK_CHILD else (RANK_CHILD, "--script")
    return (python, "-u", *as_script, job.entrypoint, *job.arguments)


def rank_variables(job: Job, local_rank: int) -> dict[str, str]:
    """What torchrun's agent tells a rank, but for the error file.

    One thing differs: TORCHELASTIC_USE_AGENT_STORE is False, since there is no agent to hold the store; rank 0 does.
    """
    rank, world_size = job.first_rank + local_rank, sum(job.nprocs)
    local_size, num_nodes = job.nprocs[job.node_index], len(job.nprocs)
    variables: dict[str, object] = {
        "RANK": rank,
        "LOCAL_RANK": local_rank,
        "GROUP_RANK": job.node_index,
        "ROLE_RANK": rank,
        "ROLE_NAME": "default",
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": local_size,
        "GROUP_WORLD_SIZE": num_nodes,
        "ROLE_WORLD_SIZE": world_size,
        "MASTER_ADDR": job.main_address,
        "MASTER_PORT": job.port,
        "TORCHELASTIC_RESTART_COUNT": 0,
        "TORCHELASTIC_MAX_RESTARTS": 0,
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": False,
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": job.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
    }
    return {name: str(value) for name, value in variables.items()}


def _agent(job: Job) -> Process:
    local_size = job.nprocs[job.node_index]
    error_file = os.path.join(job.folder, f"{job.key}-agent-error.json")
    argv = [job.python, "-m", "torch.distributed.run"]
    argv += ["--nnodes", str(len(job.nprocs))]
    if "standalone" not in job.options.values:
        argv += ["--master_addr", job.main_address, "--master_port", str(job.port), "--node_rank", str(job.node_index)]
    argv += ["--nproc_per_node", str(local_size)]
    if "log_dir" not in job.options.values:
        # Otherwise the agent makes a folder of its own under /tmp, and leaves it there.
        argv += ["--log_dir", os.path.join(job.folder, f"{job.key}-agent")]
    argv += _rendezvous(job)
    if "rdzv_endpoint" not in job.options.values and "standalone" not in job.options.values:
        host = f"[{job.main_address}]" if ":" in job.main_address else job.main_address
        argv += ["--rdzv_endpoint", f"{host}:{job.port}"]
    argv += [verbatim(text) for text in (*recorded(job.entrypoint, job.options), *job.arguments)]
    return Process(
        argv=tuple(argv),
        env={**job.environ, "TORCHELASTIC_ERROR_FILE": error_file},
        title="torchrun",
        error_file=error_file,
        report=AGENT_REPORT,
    )


def _rendezvous(job: Job) -> list[str]:
    """The user's options, and where torch's dynamic rendezvous (c10d) is wanted, what it would else find out wrongly.

    It looks for its own name's address, to see whether it is the host of the store and under which address rank 0 is
    found, and hangs where that name has none. And it gives out the ranks in the alphabetical order of the nodes' own
    addresses; only that of the first is ever connected to, so that the others can give a name that keeps the order.
    """
    values = dict(job.options.values)
    backend = values.get("rdzv_backend") or job.environ.get("PET_RDZV_BACKEND")
    if "standalone" in values:
        values.setdefault("local_addr", job.main_address)
    elif backend == "c10d":
        first = job.node_index == 0
        values.setdefault("local_addr", job.main_address if first else f"node-{job.node_index:06d}")
        given = values.get("rdzv_conf") or job.environ.get("PET_RDZV_CONF") or ""
        if "rdzv_endpoint" not in values and "is_host" not in given:
            values["rdzv_conf"] = ",".join(filter(None, (given, f"is_host={int(first)}")))
    return Options(values).agent_argv()


def recorded(entrypoint: str, options: Options) -> tuple[str, ...]:
    """A script runs so that its exception is written down: the agent itself shows that of ``@record`` alone, and what a
    rank printed may have been pushed out of the last output by others.
    """
    as_it_is = {"no_python", "module", "run_path"} & options.values.keys() or entrypoint == RANK_CHILD
    return (entrypoint,) if as_it_is else (RANK_CHILD, "--script", entrypoint)


def verbatim(text: str) -> str:
    """The agent makes one dollar sign of two, unless it is asked to fill in the local rank, which stays possible."""
    return text if "${local_rank}" in text or "$local_rank" in text else text.replace("$", "$$")

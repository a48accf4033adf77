"""The processes of ``current.torch.run`` on this node, as data: the ranks, or torchrun's agent."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...core.gang.launch_plan import LaunchPlan, Process
from ...core.ranks import rank_wrapper
from ...core.ranks.functions import RANK_MAIN
from ...core.ranks.peer_lost import RANK_PEER_LOST, port_taken
from .agent_report import AGENT_REPORT
from .options import Options

AGENT_GRACE_S = 1.0
"""The agent gives its ranks longer after SIGTERM. Ours are killed with it, but it may have a summary to write."""

HEAD_START_S = 0.1
"""Seconds by which rank 0 is started before the others: all take the same second to import torch. It opens the
store, and a rank that finds it closed tries again only after 0.25 to 0.75 s."""


WARM = "torch,torch._dynamo"
"""What ranks that are started again have imported already. The second is what an optimizer imports when it is made, and
takes as long as the first.
"""

RANK_JOB = os.path.abspath(rank_wrapper.__file__)

_OWN_WAY, _OWN_WAY_BY_VARIABLE = frozenset({"run_path"}), frozenset({"PET_MODULE", "PET_NO_PYTHON", "PET_RUN_PATH"})
"""Options and variables with which the agent gets the user's command as it is."""


@dataclass(frozen=True)
class Job:
    """One call of ``current.torch.run``, with all values that the nodes have agreed on.

    Parameters
    ----------
    entrypoint : str
        Script, module or program.
    arguments : tuple of str
        Its arguments.
    options : Options
        torchrun's, as the user gave them.
    nprocs : tuple of int
        Processes on each node that has some, by node rank.
    node_index : int
        This node's rank among them.
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
    restartable : bool
        Whether the ranks may be started again.
    restart : mapping
        Variables that say in the ranks how often they were.
    warm : bool
        Whether interpreters that have imported torch wait for that.
    nodes : tuple of int
        The indices of the nodes that have ranks, where the gang goes on without others.
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
    restartable: bool = False
    restart: Mapping[str, str] = field(default_factory=dict)
    warm: bool = False
    nodes: tuple[int, ...] = ()

    @property
    def first_rank(self) -> int:
        """The global rank of this node's first process."""
        return sum(self.nprocs[: self.node_index])


def plan(job: Job) -> LaunchPlan:
    """The processes of this node. A pure function."""
    if job.launcher == "torchrun":
        processes: tuple[Process, ...] = (_agent(job),)
    else:
        processes = tuple(_rank(job, local_rank) for local_rank in range(job.nprocs[job.node_index]))
    return LaunchPlan(
        processes=processes,
        grace=AGENT_GRACE_S if job.launcher == "torchrun" else None,
        peer_lost=RANK_PEER_LOST,
        port_taken=port_taken(job.port) if job.port_is_ours else None,
        key=job.key,
        restartable=job.restartable,
        nodes=job.nodes,
        warm=WARM if job.warm and all(process.argv[2:3] == (RANK_MAIN,) for process in processes) else "",
    )


def _rank(job: Job, local_rank: int) -> Process:
    rank = job.first_rank + local_rank
    local_size = job.nprocs[job.node_index]
    error_file = os.path.join(job.folder, f"{job.key}-rank-{rank}-error.json")
    return Process(
        argv=_command(job),
        env={**job.environ, **rank_variables(job, local_rank), **job.restart, "TORCHELASTIC_ERROR_FILE": error_file},
        title=f"rank {rank}",
        rank=rank,
        label=f"[rank {rank}] " if local_size > 1 else "",
        error_file=error_file,
        delay=HEAD_START_S if rank else 0.0,
        records_exceptions=RANK_MAIN in _command(job),
    )


def _command(job: Job) -> tuple[str, ...]:
    return rank_command(job.entrypoint, job.arguments, job.options, job.environ.get("PYTHON_EXEC", job.python))


def rank_command(entrypoint: str, arguments: tuple[str, ...], options: Options, python: str) -> tuple[str, ...]:
    """A rank's command, as the agent would start it, but with a recorder of exceptions in Python."""
    if "no_python" in options.values:
        return (entrypoint, *arguments)
    kind = "--module" if "module" in options.values else "--script"
    recorded = () if entrypoint == RANK_MAIN else (RANK_MAIN, kind)
    return (python, "-u", *recorded, entrypoint, *arguments)


def rank_variables(job: Job, local_rank: int) -> dict[str, str]:
    """The variables that torchrun's agent sets for a rank, except the error file.

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
    argv = [job.python, "-m", "torch.distributed.run"]
    argv += ["--nnodes", str(len(job.nprocs))]
    if "standalone" not in job.options.values:
        argv += ["--master_addr", job.main_address, "--master_port", str(job.port), "--node_rank", str(job.node_index)]
    argv += ["--nproc_per_node", str(local_size)]
    if "log_dir" not in job.options.values:
        # Otherwise the agent makes a folder of its own under /tmp, and leaves it there.
        argv += ["--log_dir", os.path.join(job.folder, f"{job.key}-agent")]
    ends = os.path.join(job.folder, job.key + "-rank-{rank}-error.json")
    ranks = AgentsRanks(job.entrypoint, job.arguments, _rendezvous(job), job.environ, job.python, ends)
    argv += ranks.options()
    if "rdzv_endpoint" not in job.options.values and "standalone" not in job.options.values:
        host = f"[{job.main_address}]" if ":" in job.main_address else job.main_address
        argv += ["--rdzv_endpoint", f"{host}:{job.port}"]
    own_errors = os.path.join(job.folder, f"{job.key}-agent-error.json")
    return ranks.agent((*argv, *ranks.command()), {**job.environ, **job.restart}, own_errors)


def _rendezvous(job: Job) -> Options:
    """The user's options, with the addresses that torch's dynamic rendezvous (c10d) would not find by itself.

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
    return Options(values)


@dataclass(frozen=True)
class AgentsRanks:
    """The ranks of torchrun's agent. Each has a wrapper that records its end: the agent reports a failed one only once
    it has ended the others, and shows an exception of ``@record`` alone.

    Parameters
    ----------
    entrypoint, arguments, environ
        As in :class:`Job`.
    given : Options
        torchrun's, as the user gave them.
    python : str
        The step's interpreter.
    ends : str
        Path of what each leaves, with "{rank}" for its number.
    """

    entrypoint: str
    arguments: tuple[str, ...]
    given: Options
    environ: Mapping[str, str]
    python: str
    ends: str

    @property
    def are_wrapped(self) -> bool:
        """False where the user's options choose the agent's own way to start programs."""
        return not (_OWN_WAY & self.given.values.keys() or _OWN_WAY_BY_VARIABLE & self.environ.keys())

    def options(self) -> list[str]:
        """The user's options, as the agent's arguments."""
        if not self.are_wrapped:
            return self.given.agent_argv()
        return [*self.given.agent_argv(frozenset({"module", "no_python"})), "--no_python"]

    def command(self) -> list[str]:
        """The command that the agent starts in each rank."""
        words = (self.entrypoint, *self.arguments)
        if self.are_wrapped:
            python = self.environ.get("PYTHON_EXEC", self.python)
            words = (self.python, "-I", "-S", RANK_JOB, "--record", self.ends)
            words += rank_command(self.entrypoint, self.arguments, self.given, python)
        return [verbatim(text) for text in words]

    def agent(self, argv: tuple[str, ...], environ: Mapping[str, str], own_errors: str) -> Process:
        """The agent itself, with the path of its own error file."""
        return Process(
            argv=argv,
            env={**environ, "TORCHELASTIC_ERROR_FILE": own_errors},
            title="torchrun",
            error_file=self.ends if self.are_wrapped else own_errors,
            report=AGENT_REPORT,
            records_exceptions=self.are_wrapped and "no_python" not in self.given.values,
            leaves_ends=self.are_wrapped,
        )


def verbatim(text: str) -> str:
    """The agent makes one dollar sign of two, unless it is asked to fill in the local rank, which stays possible."""
    return text if "${local_rank}" in text or "$local_rank" in text else text.replace("$", "$$")

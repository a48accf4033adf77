"""torchrun on this machine alone, in a plain step or script, under a guard that ends what was started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...core.calls.entrypoint import Entrypoint, read_entrypoint
from ...core.calls.misplaced_arguments import suggesting
from ...core.calls.one_node import run_on_one_node
from ...core.gang.launch_plan import LaunchPlan
from ...core.guard_client.single_node import SingleNodeGuard
from ...core.machine.gpus import cpu_count, gpu_count
from ...core.machine.network import network_variables
from ...core.machine.neuron import neuron_cores
from ...core.ranks.torch_extensions import hold_extensions
from .exceptions import TorchrunException, explain
from .options import TORCHRUN_OPTIONS, Options, check_nodes, choose_nproc, read_options
from .plan import AGENT_GRACE_S, AgentsRanks

# Options that set where and how the agent meets others.
_MEETING = frozenset(("standalone", "master_port", "master_addr", "rdzv_endpoint", "rdzv_backend", "rdzv_id", "nnodes"))


class TorchrunSingleNodeMultiGPU:
    """torchrun over this machine's GPUs in a step without ``num_parallel``.

    Example
    -------
    ``TorchrunSingleNodeMultiGPU().run(entrypoint="train.py", entrypoint_args={"epochs": 3})``
    """

    @suggesting("TorchrunSingleNodeMultiGPU().run", {"torchrun_args": TORCHRUN_OPTIONS, "entrypoint_args": ()})
    def run(
        self,
        torchrun_args: Mapping[str, Any] | Sequence[Any] | None = None,
        entrypoint: str | os.PathLike[str] | Callable[..., Any] | None = None,
        entrypoint_args: Mapping[str, Any] | Sequence[Any] | None = None,
        nproc_per_node: int | str | None = None,
        dry_run: bool = False,
    ) -> list[Any] | None:
        """Run ``entrypoint`` in every rank of this machine, under torchrun's agent.

        Parameters
        ----------
        torchrun_args, entrypoint, entrypoint_args, nproc_per_node
            As in ``current.torch.run``.
        dry_run : bool
            Whether what would start is only shown (docs/dry-runs.md). Nothing starts, and None is returned.

        Returns
        -------
        list or None
            What the ranks returned, in their order, where ``entrypoint`` is a function.

        Raises
        ------
        BadAttribute
            An argument that is not valid. Nothing was started.
        TorchrunException
            A rank failed. A function's own exception is raised as it is.
        GuardDied
            The process that watches over the ranks was killed; they were ended.
        """
        options = read_options(torchrun_args)
        check_nodes(options, 0, 1)
        nproc = choose_nproc(nproc_per_node, options, None, gpu_count(), cpu_count(), neuron_cores())

        def read(guard: SingleNodeGuard) -> Entrypoint:
            return read_entrypoint(entrypoint, entrypoint_args, options.values, guard.folder, "torchrun_args", True)

        def plan(guard: SingleNodeGuard, what: Entrypoint) -> LaunchPlan:
            environ = {**os.environ, **hold_extensions(os.environ, guard.folder)}
            return single_node_plan(options, nproc, guard.folder, what.target, what.arguments, environ)

        return run_on_one_node(read, plan, nproc, TorchrunException, explain, dry_run)


def single_node_plan(
    options: Options, nproc: int, folder: str, target: str, arguments: tuple[str, ...], environ: Mapping[str, str]
) -> LaunchPlan:
    """The plan of torchrun's agent, which writes its files into the private ``folder``."""
    ends = os.path.join(folder, "rank-{rank}-error.json")
    ranks = AgentsRanks(target, arguments, options, environ, sys.executable, ends)
    argv = single_node_argv(options, nproc, os.path.join(folder, "agent"), ranks)
    env = {**environ, **network_variables("127.0.0.1", environ)}
    return LaunchPlan((ranks.agent(tuple(argv), env, os.path.join(folder, "error.json")),), AGENT_GRACE_S)


def single_node_argv(options: Options, nproc: int, log_dir: str, ranks: AgentsRanks) -> list[str]:
    """The command; torchrun meets on a port of its own choice where the options set none."""
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(nproc)]
    if not _MEETING & set(options.values):
        argv += ["--standalone"]
    if "local_addr" not in options.values:
        # Otherwise the ranks look for rank 0 under this machine's name, which need not have an address.
        argv += ["--local_addr", "127.0.0.1"]
    for name in ("nnodes", "master_addr", "master_port", "node_rank"):
        if options.values.get(name) is not None:
            argv += [f"--{name}", str(options.values[name])]
    if "log_dir" not in options.values:
        argv += ["--log_dir", log_dir]
    return [*argv, *ranks.options(), *ranks.command()]

"""Reads torchrun's options, checks them against the gang, and finds those that need torchrun's agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.attributes import read_nproc
from ...core.calls.option_table import OptionTable, to_argv
from ...core.exceptions import BadAttribute

LAUNCHERS = ("direct", "torchrun")

GANG_OPTIONS = ("nnodes", "master_addr", "master_port", "node_rank", "nproc_per_node")
"""Options that the gang sets itself, in the order in which the agent gets them."""

# Options that need no agent.
_DIRECT_OPTIONS = frozenset((*GANG_OPTIONS, "module", "no_python"))
TORCHRUN_OPTIONS = (
    *GANG_OPTIONS, "module", "no_python", "run_path", "standalone", "virtual_local_rank", "max_restarts",
    "monitor_interval", "start_method", "event_log_handler", "role", "log_dir", "redirects", "tee",
    "local_ranks_filter", "local_addr", "logs_specs", "numa_binding", "signals_to_handle", "duplicate_stdout_filters",
    "duplicate_stderr_filters", "shutdown_timeout", "rdzv_backend", "rdzv_endpoint", "rdzv_id", "rdzv_conf",
)  # fmt: skip
"""torchrun's options, for those who give one to ``run()`` itself. Others pass, too, in torchrun_args."""

_TABLE = OptionTable(
    "torchrun_args",
    flags=frozenset(("standalone", "module", "no_python", "run_path", "virtual_local_rank")),
    other_names={"m": "module", "r": "redirects", "t": "tee"},
    alternating=True,
)


@dataclass(frozen=True)
class Options:
    """Options by their names with underscores; a flag's value is None. Later ones win, as on a command line."""

    values: Mapping[str, str | None]

    def agent_only(self) -> list[str]:
        """The options that only torchrun's own agent understands."""
        return [name for name in self.values if name not in _DIRECT_OPTIONS]

    def agent_argv(self, left_out: frozenset[str] = frozenset()) -> list[str]:
        """The agent's arguments in the user's order, without those that the gang sets itself and those ``left_out``."""
        return to_argv(self.values, left_out.union(GANG_OPTIONS))


def read_options(torchrun_args: Mapping[str, Any] | Sequence[Any] | None) -> Options:
    """Read ``torchrun_args``: a dict, or a list of names and values in turn; dashes and underscores are the same.

    Raises
    ------
    BadAttribute
        Something in it is no option.
    """
    return Options(_TABLE.read(torchrun_args))


def choose_launcher(wanted: str | None, options: Options, environ: Mapping[str, str]) -> str:
    """Who starts the ranks: "direct", or "torchrun" where an option, or a PET_* variable for one, needs the agent.

    Raises
    ------
    BadAttribute
        ``wanted`` is "direct", but an option needs the agent.
    """
    names = options.agent_only()
    if wanted == "direct" and names:
        raise BadAttribute(
            f"torchrun_args has {', '.join(names)}, which only torchrun's own agent understands. Leave out "
            '@torchrun(launcher="direct"), or the option.'
        )
    if wanted is not None:
        return wanted
    by_variable = [name for name in environ if name.startswith("PET_") and name[4:].lower() not in _DIRECT_OPTIONS]
    return "torchrun" if names or by_variable else "direct"


def check_nodes(options: Options, node_index: int, num_nodes: int) -> None:
    """Refuse options that contradict the gang.

    Raises
    ------
    BadAttribute
        A range of nodes, or another number or rank of nodes than the gang's.
    """
    nnodes = options.values.get("nnodes")
    if nnodes is not None:
        least, colon, most = nnodes.partition(":")
        if colon and least != most:
            raise BadAttribute(
                f"torchrun_args has nnodes={nnodes}, but a gang has a fixed number of nodes, here {num_nodes}: all of "
                "them start together and end together. Leave nnodes out; num_parallel sets it."
            )
        if least != str(num_nodes):
            raise BadAttribute(
                f"torchrun_args has nnodes={nnodes}, but this gang has {num_nodes}. "
                "Leave nnodes out; num_parallel sets it."
            )
    rank = options.values.get("node_rank")
    if rank is not None and rank != str(node_index):
        raise BadAttribute(
            f"torchrun_args has node_rank={rank} on node {node_index}. Leave node_rank out: each node knows its own."
        )
    if "standalone" in options.values and num_nodes > 1:
        raise BadAttribute(
            f"torchrun_args has standalone, which is for one node, but this gang has {num_nodes}. Leave it out; in a "
            "step without num_parallel use TorchrunSingleNodeMultiGPU."
        )
    if "module" in options.values and "no_python" in options.values:
        raise BadAttribute("torchrun_args has both module and no_python: a module needs Python. Leave one of them out.")


def choose_nproc(call: Any, options: Options, decorator: Any, gpus: int, cpus: int, cores: int = 0) -> int:
    """Processes per node: from the call, else torchrun_args, else the decorator, else the node's GPUs, or its
    NeuronCores (``cores``), or 1.

    Raises
    ------
    BadAttribute
        It is given in two places at once, or is no number of processes that this node can have.
    """
    in_options = options.values.get("nproc_per_node")
    if call is not None and "nproc_per_node" in options.values:
        raise BadAttribute(
            f"nproc_per_node is given twice: {call!r} to run(), and {in_options!r} in its torchrun_args. Give it once."
        )
    chosen = call if call is not None else in_options if in_options is not None else decorator
    return read_nproc("auto" if chosen is None else chosen, gpus, cpus, cores)

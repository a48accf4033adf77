"""Reads DeepSpeed's own options, and checks them against the gang."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.calls.option_table import OptionTable, to_argv
from ...core.exceptions import BadAttribute

TRANSPORTS = ("auto", "ssh", "channel", "none")

_FLAGS = frozenset(
    {
        "module", "no_python", "no_local_rank", "no_ssh", "no_ssh_check", "force_multi", "save_pid",
        "bind_cores_to_rank", "quiet",
    }
)  # fmt: skip

# Options that the gang sets itself, with the reason why a user must not.
_OURS = {
    "hostfile": "the gang writes one for each call",
    "master_addr": "the gang knows it",
    "node_rank": "each node knows its own",
    "ssh_port": "the nodes reach each other by ssh of the gang's own",
}
# Options that end up in the hostfile, or that the rank's wrapper takes care of.
_CONSUMED = frozenset(
    {
        "num_nodes", "num_gpus", "include", "exclude", "master_port", "module", "no_python", "no_local_rank", "no_ssh",
        "no_ssh_check", "force_multi", "launcher", "launcher_args",
    }
)  # fmt: skip

DEEPSPEED_OPTIONS = (
    *_OURS, *_CONSUMED, "save_pid", "bind_cores_to_rank", "bind_core_list", "quiet", "elastic_training",
    "min_elastic_nodes", "max_elastic_nodes", "autotuning", "enable_each_rank_log", "venv_script",
)  # fmt: skip
"""deepspeed's options, for those who give one to ``run()`` itself. Others pass, too, in deepspeed_args."""

_TABLE = OptionTable(
    "deepspeed_args",
    _FLAGS,
    {"H": "hostfile", "i": "include", "e": "exclude", "q": "quiet", "num_accelerators": "num_gpus"},
    _OURS,
)


@dataclass(frozen=True)
class Options:
    """Options by their names; a flag's value is None. Later ones win, as on a command line."""

    values: Mapping[str, str | None]

    def passed_on(self) -> list[str]:
        """The options that DeepSpeed's launcher gets unchanged."""
        return to_argv(self.values, _CONSUMED)

    @property
    def launcher(self) -> str:
        """The option ``launcher``, which starts ranks on other nodes, in lower case; "" where there is none."""
        return (self.values.get("launcher") or "").lower()


def read_options(deepspeed_args: Mapping[str, Any] | Sequence[Any] | None) -> Options:
    """Read ``deepspeed_args``: a dict, or a list of words as on deepspeed's own command line.

    Raises
    ------
    BadAttribute
        Something in it is no option, or an option that the gang sets itself.
    """
    return Options(_TABLE.read(deepspeed_args))


def choose_transport(wanted: str, options: Options) -> str:
    """How ranks on other nodes are started: "none", "ssh" or "channel", where "ssh" may still turn out not to work.

    Raises
    ------
    BadAttribute
        The launcher that an option names does not go with the transport.
    """
    launcher = options.launcher
    if "no_ssh" in options.values:
        if wanted in ("ssh", "channel"):
            raise BadAttribute(f'deepspeed_args has no_ssh, but the step has @deepspeed(transport="{wanted}").')
        wanted = "none"
    if wanted == "none" and launcher:
        raise BadAttribute(
            f'deepspeed_args has launcher={launcher}, which starts ranks on other nodes, but with transport="none" '
            "each node starts its own. Leave one of them out."
        )
    if wanted == "auto":
        return "ssh" if launcher or "autotuning" in options.values else "none"
    return wanted

"""The program named ``ssh`` by which DeepSpeed's launcher runs commands on other nodes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from ...core.gang.gang import Gang
from ...core.logs import say
from ...core.remote_shell.channel import ChannelShell
from ...core.remote_shell.choice import remote_shell
from ...core.remote_shell.hostfile import write_private

# When it is ended itself, DeepSpeed's launcher has pdsh kill by name every process that looks like a launcher, on any
# node, also that of another gang on the same machine. The guards end the gang's own processes.
_SSH = """\
#!/bin/sh
case "$*" in *"pkill -f"*) exit 0 ;; esac
exec {rsh} "$@"
"""

FOLDER = "deepspeed"
"""In the gang's private folder: where the program is."""


@dataclass(frozen=True)
class Remote:
    """The way to start ranks on other nodes, and the environment of ranks on this node."""

    folder: str
    environ: Mapping[str, str]

    @classmethod
    def planned(cls, gang: Gang, environ: Mapping[str, str]) -> Remote:
        """What :meth:`form` would give, for a dry run: nothing is started."""
        return cls(os.path.join(gang.folder, FOLDER), environ)

    @classmethod
    def form(cls, gang: Gang, wanted: str, missing: list[list[str]], environ: Mapping[str, str]) -> Remote:
        """Let the nodes run commands on each other. Every node must call it.

        Raises
        ------
        ToolMissing
            ssh is wanted and cannot be had.
        """
        channel = ChannelShell.form(gang, environ, os.getcwd())
        taken, rsh = remote_shell(gang, wanted, missing, channel, environ, "deepspeed")
        folder = os.path.join(gang.folder, FOLDER)
        os.mkdir(folder, 0o700)
        write_private(os.path.join(folder, "ssh"), _SSH.format(rsh=shlex.quote(rsh)), 0o700)
        if gang.is_control:
            by = "ssh of the gang's own" if taken == "ssh" else "the gang's own channel, without ssh"
            say(f"DeepSpeed reaches the other nodes by {by}.")
        return cls(folder, environ)

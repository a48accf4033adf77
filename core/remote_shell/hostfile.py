"""Hostfiles, in the formats of Open MPI, MPICH and DeepSpeed, and private files for one user."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from typing import Literal

from ..exceptions import BadAttribute, ToolMissing
from ..guard.host.private_folder import temporary_folder


def hostfile(entries: Sequence[tuple[str, int]], style: Literal["openmpi", "mpich", "deepspeed"]) -> str:
    """Return the text of a hostfile; an address that occurs several times gets all its slots in one line.

    Parameters
    ----------
    entries : sequence of (str, int)
        Address or name, and slots, in the order in which processes are to be placed.
    style : str
        The format: "openmpi" ("10.0.0.7 slots=8"), "mpich", Intel MPI too ("10.0.0.7:8"), or "deepspeed", which reads
        Open MPI's form.

    Raises
    ------
    BadAttribute
        For a node without a slot, for an address that the format cannot hold, and for an IPv6 address in MPI's formats:
        Hydra takes its colons for the slots', and Open MPI refuses them.

    Example
    -------
    >>> hostfile([("10.0.0.7", 8), ("10.0.0.8", 8)], "mpich")
    '10.0.0.7:8\\n10.0.0.8:8\\n'
    """
    slots: dict[str, int] = {}
    for address, number in entries:
        if number < 1:
            raise BadAttribute(f"A hostfile gives each node one slot at least, and {address!r} has {number}.")
        if not re.fullmatch(r"[^\s#=\[\]]+", address):
            raise BadAttribute(f"{address!r} is no address or name of a node.")
        if ":" in address and style != "deepspeed":
            raise BadAttribute(
                f"MPI's hostfiles cannot hold the IPv6 address {address}. Give the node an IPv4 address, or a name."
            )
        slots[address] = slots.get(address, 0) + number
    form = "{}:{}\n" if style == "mpich" else "{} slots={}\n"
    return "".join(form.format(address, number) for address, number in slots.items())


def write_private(path: str, text: str | bytes, mode: int = 0o600) -> None:
    """Write a file that only this user can read, whole or not at all.

    Parameters
    ----------
    path : str
        In a folder that nobody else may write to. An existing file or link is replaced, not written through.
    text : str or bytes
        A string is encoded as file names are, so that undecodable bytes are written as they were read.
    mode : int
        Permissions; 0o700 for a script.

    Raises
    ------
    OSError
        The folder is missing or full. No partial file is left, and an existing one is unchanged.
    ToolMissing
        It is a script, and its file system is mounted noexec.
    """
    temporary = f"{path}.{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, mode)  # whatever the umask
            file.write(text if isinstance(text, bytes) else os.fsencode(text))
        if mode & 0o100 and not os.access(temporary, os.X_OK):
            raise ToolMissing(
                f"The temporary folder of this node, {temporary_folder()}, is on a file system that starts no programs "
                "(it is mounted noexec), and what reaches the other nodes is a script there. Set TMPDIR to a folder on "
                "another one, or mount it without noexec."
            )
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise

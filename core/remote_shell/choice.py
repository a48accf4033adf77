"""Whether a launcher's framework starts its parts on other nodes over SSH or through the guards."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..exceptions import ToolMissing
from ..gang.gang import Gang
from ..logs import say
from .channel import ChannelShell
from .ssh import SshShell
from .ssh_checks import SshUnusable

LEFT_BY_MPICH = ("/dev/shm/mpich_shm_*", "/tmp/hydra_hwloc_xmlfile_*")
"""Files that MPICH leaves when it is killed; it has no option for other names. Open MPI's lie in folders of ours."""


NO_SCHEDULERS = {"ras": "^slurm,tm,lsf,gridengine,alps,pbs,flux", "plm": "^slurm,tm,lsf,alps,pals"}
"""Open MPI's parameters, of ORTE and PRRTE alike, that have it leave batch systems alone: "ras" takes nodes from an
allocation, in place of the hostfile, "plm" starts daemons by the batch system, such as by srun. A name that the
installation at hand does not have does no harm.
"""

_ALLOCATIONS = ("SLURM_JOB_ID", "SLURM_JOBID", "PBS_JOBID", "LSB_JOBID", "PE_HOSTFILE", "COBALT_JOBID", "FLUX_JOB_ID")


def in_allocation(environ: Mapping[str, str]) -> bool:
    """Whether ``environ`` is that of a job of a batch system that MPI's launchers know: Slurm, PBS, LSF, Grid Engine,
    Cobalt or Flux. They would ask it for nodes and have it start their daemons; the nodes are the gang's.
    """
    return any(name in environ for name in _ALLOCATIONS)


def remote_shell(
    gang: Gang, wanted: str, missing: list[list[str]], channel: ChannelShell, environ: Mapping[str, str], decorator: str
) -> tuple[str, str]:
    """Return the transport, "ssh" or "channel", and the program that starts a command on another node.

    Every node must call it.

    Parameters
    ----------
    wanted : str
        "auto", "ssh" or "channel".
    missing : list of list of str
        The programs of OpenSSH that each node lacks.
    channel : ChannelShell
        Used where SSH is not.
    environ : mapping
        The environment of commands that other nodes run here over SSH.
    decorator : str
        Its name, for messages.

    Raises
    ------
    ToolMissing
        "ssh" is wanted and cannot be used.
    """
    transport = choose_transport(wanted, missing, decorator)
    if transport == "ssh":
        try:
            return "ssh", SshShell.form(gang, environ, os.getcwd()).rsh
        except SshUnusable as error:
            if wanted == "ssh":
                raise
            if gang.is_control:
                say(f"ssh cannot be used, so the gang's own channel is: {error}")
    return "channel", channel.rsh


def choose_transport(wanted: str, missing: list[list[str]], decorator: str) -> str:
    """Return "ssh" or "channel"; the parameters are those of :func:`remote_shell`.

    Raises
    ------
    ToolMissing
        "ssh" is wanted, and a node lacks a program of it.
    """
    without = [index for index, tools in enumerate(missing) if tools]
    if wanted == "auto":
        return "channel" if without else "ssh"
    if wanted == "ssh" and without:
        tools = ", ".join(missing[without[0]])
        raise ToolMissing(
            f'@{decorator}(transport="ssh"): node {without[0]} has no {tools}. Add openssh-client and openssh-server '
            'to the image, or leave transport out: "channel" needs no SSH.'
        )
    return wanted

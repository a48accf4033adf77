"""How a launcher's framework starts its parts on other nodes: over SSH of the gang's own, or over its channel."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..exceptions import ToolMissing
from ..gang.gang import Gang
from ..logs import say
from .channel import Peers
from .ssh import SshMesh, SshUnusable

LEFT_BY_MPICH = ("/dev/shm/mpich_shm_*", "/tmp/hydra_hwloc_xmlfile_*")
"""What MPICH leaves when it is killed; nothing gives these files other names. Open MPI's are in folders of ours."""


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


def reach(
    gang: Gang, wanted: str, missing: list[list[str]], peers: Peers, environ: Mapping[str, str], decorator: str
) -> tuple[str, str]:
    """The transport that is taken, and the program that starts a command on another node. Every node must call it.

    Raises
    ------
    ToolMissing
        ssh is wanted and cannot be had.
    """
    transport = choose_transport(wanted, missing, decorator)
    if transport == "ssh":
        try:
            return "ssh", SshMesh.form(gang, environ, os.getcwd()).rsh
        except SshUnusable as error:
            if wanted == "ssh":
                raise
            if gang.is_control:
                say(f"ssh cannot be used, so the gang's own channel is: {error}")
    return "channel", peers.rsh


def choose_transport(wanted: str, missing: list[list[str]], decorator: str) -> str:
    """ "ssh" or "channel"; ``missing`` has each node's missing programs of OpenSSH.

    Raises
    ------
    ToolMissing
        ssh is wanted, and a node lacks it.
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


def sharing(gang: Gang) -> int:
    """How many of the nodes are processes of this machine, this one among them."""
    return sum(node.address == gang.node.address for node in gang.nodes)


def own_slots(gang: Gang) -> int:
    """This node's processors; its share of them, where the nodes are processes of one machine."""
    return max(1, gang.node.cpus // sharing(gang))

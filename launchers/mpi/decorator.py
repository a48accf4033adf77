"""``@mpi``: mpirun over the nodes of a gang."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Literal

from ...core.exceptions import BadAttribute, ToolMissing
from ...core.gang.gang import Gang, own_left_by_tries
from ...core.gang.restarts import RESTARTS, RestartPolicy
from ...core.gang.shares import own_neuron_cores, own_slots
from ...core.guard.processes.process_table import GANG_MARKER
from ...core.logs import say
from ...core.machine.efa import efa_devices, efa_variables
from ...core.machine.network import interface_for
from ...core.remote_shell.channel import ChannelShell
from ...core.remote_shell.choice import LEFT_BY_MPICH, remote_shell
from ...core.remote_shell.hostfile import hostfile, write_private
from ...core.remote_shell.ssh_checks import missing_tools
from ...core.step.decorator import GangDecorator
from .flavour import Flavour, find_mpi
from .launcher import VISIBLE, MPIExecutor
from .plan import Site, clean_environment, common_interface, own_tmpdir

TRANSPORTS = ("auto", "ssh", "channel")


class MPIDecorator(GangDecorator):
    """
    Runs the step's body on node 0 of a gang, and gives it `current.mpi.run`, which is mpirun over all its nodes.

    Parameters
    ----------
    all_nodes_started_timeout : float, optional, default 600
        Seconds to wait for the last node to start.
    card : bool, optional, default True
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    preflight : bool | str, optional, default True
        Whether the nodes compare software and machines before the body; "full" also tries the network between them.
    end_timeout : float, optional, default 30
        Seconds that the end of the step, after its body, may take on a node once the gang has failed.
    lost_host_timeout : float, optional, default 30
        Seconds within which a host that no longer answers ends the gang.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node that does not answer while its host does ends the gang.
    stall_timeout : float, optional, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    restarts : int, optional, default 0
        How often the ranks of one `current.mpi.run` are started again, on the same nodes, when one has failed.
    restart_window : float, optional, default 0
        Seconds in which restarts are counted; 0 is the whole call.
    restart_on : callable, optional, default None
        Gets what has failed, and returns whether the ranks are started again. By default failures that another try
        would meet again end the step at once: an import error, a wrong argument, an exception before any progress.
    transport : str, default "auto"
        How mpirun starts its daemons on the other nodes: "ssh" (a private sshd on each node, with keys made for this
        step), "channel" (without SSH: over an encrypted connection of the gang), or "auto" (ssh where OpenSSH's client
        and server are on every node).
    worker_polling_freq : float, optional, default None
        Accepted for the sake of older flows. Nothing polls any more.

    MF Add To Current
    -----------------
    mpi -> metaflow_extensions.gang.launchers.mpi.launcher.MPIExecutor
        `run`, `exec`, `cc`, `broadcast_file`, `hosts`: `current.mpi.run(program="python train.py")`.

        @@ Returns
        -------
        MPIExecutor
            What runs programs under MPI on the nodes of this gang.
    """

    name = "mpi"
    distributions = ("mpi4py",)
    defaults: ClassVar[dict[str, Any]] = {
        **GangDecorator.defaults,
        **RESTARTS,
        "transport": "auto",
        "worker_polling_freq": None,
    }
    runs_on_control_only = True

    _flavour: Flavour

    def check_attributes(self) -> None:
        """Raise BadAttribute for a value that is not valid."""
        super().check_attributes()
        RestartPolicy.of(self)
        if self.attributes["transport"] not in TRANSPORTS:
            raise BadAttribute(
                f"@mpi(transport={self.attributes['transport']!r}): it is one of {', '.join(map(repr, TRANSPORTS))}."
            )

    def ranks(self, gpus: int, cpus: int) -> int:
        """The slots that the step asks for, or that the node has GPUs."""
        return self.gpus or gpus or self.cpus or 1

    def preflight(self) -> None:
        """Raise ToolMissing where there is no MPI, on any node: each starts its own ranks."""
        self._flavour = find_mpi(os.environ)

    def form(self, gang: Gang) -> dict[str, object]:
        """What the step finds on ``current``. Every node takes part, though the body runs on control."""
        addresses = [node.address for node in gang.nodes]
        is_one_machine = len(set(addresses)) == 1
        # MPICH may bring a libfabric of its own, without the provider, and would then find none at all.
        efa = efa_variables(efa_devices(), os.environ) if self._flavour.is_open_mpi and not is_one_machine else {}
        if efa:
            os.environ.update(efa)
            say(f"Set for MPI, since you set none: {', '.join(f'{name}={value}' for name, value in efa.items())}")
        before = clean_environment(os.environ)
        own = {
            "mpi": str(self._flavour),
            "kind": self._flavour.kind,
            "slots": self.gpus or own_neuron_cores(gang) or self.cpus or own_slots(gang),
            "interface": interface_for(gang.another_address()),
            "id": os.environ[GANG_MARKER].rpartition(".")[0],
            "missing": missing_tools(),
            "devices": os.environ.get(VISIBLE),
        }
        nodes = gang.all_gather(own)
        check_same_mpi(nodes)
        tmpdir, shared_memory = make_folders(gang, nodes[0]["id"], self._flavour)
        # A node of another machine may have what mpirun starts here; ranks get the task's own TMPDIR again.
        environ = {**before, **own_tmpdir(before, tmpdir)}
        transport, rsh, channel = "", "", None
        if not is_one_machine:
            channel = ChannelShell.form(gang, environ, os.getcwd())
            wanted = self.attributes["transport"]
            transport, rsh = remote_shell(
                gang, wanted, [node["missing"] for node in nodes], channel, environ, self.name
            )
        if not gang.is_control:
            return {}
        slots = tuple(node["slots"] for node in nodes)
        path = os.path.join(gang.folder, "hostfile")
        style: Literal["openmpi", "mpich"] = "openmpi" if self._flavour.is_open_mpi else "mpich"
        write_private(path, hostfile(list(zip(addresses, slots, strict=True)), style))
        interface = "" if is_one_machine else common_interface([node["interface"] for node in nodes], addresses)
        cpus = [node.cpus for node in gang.nodes]
        crowded = sum(slots) > cpus[0] if is_one_machine else any(s > c for s, c in zip(slots, cpus, strict=True))
        site = Site(self._flavour, path, sum(slots), crowded, rsh, interface, os.geteuid() == 0, tmpdir, shared_memory)
        say(f"{self._flavour}, {describe_transport(transport, rsh)}; slots: {', '.join(map(str, slots))}")
        devices = ",".join(node["devices"] for node in nodes if node["devices"]) if is_one_machine else ""
        policy = RestartPolicy.of(self)
        executor = MPIExecutor(
            tuple(addresses[1:]), path, slots, transport, gang, channel, site, before, devices, policy
        )
        return {"mpi": executor}


def make_folders(gang: Gang, name: str, flavour: Flavour) -> tuple[str, str]:
    """Where this MPI's files are on this node: in the private folder, and in shared memory, by the same path on all."""
    tmpdir = os.path.join(gang.folder, "mpi")
    os.mkdir(tmpdir, 0o700)
    if not flavour.is_open_mpi:
        for pattern in LEFT_BY_MPICH:
            gang.own_files(pattern)
        return tmpdir, ""
    own_left_by_tries(gang, os.path.join(tmpdir, "*"))
    shared_memory = os.path.join("/dev/shm", f"metaflow-gang-{name}")
    try:
        gang.own_folder(shared_memory)
    except OSError:
        return tmpdir, ""
    own_left_by_tries(gang, os.path.join(shared_memory, "*"))
    return tmpdir, shared_memory


def describe_transport(transport: str, rsh: str) -> str:
    """How mpirun reaches the other nodes, as a phrase for the log."""
    return {
        "": "all nodes on this machine",
        "ssh": f"other nodes by ssh ({rsh})",
        "channel": "other nodes by the gang's own channel, without ssh",
    }[transport]


def check_same_mpi(nodes: list[dict[str, Any]]) -> None:
    """One mpirun starts all ranks. Raises ToolMissing, the same on each node, where the nodes have different MPIs."""
    for index, node in enumerate(nodes):
        if node["kind"] != nodes[0]["kind"]:
            raise ToolMissing(
                f"Node 0 has {nodes[0]['mpi']} and node {index} has {node['mpi']}: all nodes need the same MPI. Use "
                "one image for all, and look at the PATH."
            )

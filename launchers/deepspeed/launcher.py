"""``current.deepspeed``: agrees with the other nodes on a world, and has DeepSpeed's launcher start its ranks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...core.attributes import declared_port, read_port
from ...core.calls.entrypoint import Entrypoint, read_entrypoint
from ...core.calls.local_process import explain
from ...core.calls.misplaced_arguments import suggesting
from ...core.calls.returns import Results, outcome
from ...core.exceptions import BadAttribute, PortTaken, ProcessFailed
from ...core.gang.gang import Gang
from ...core.logs import say
from ...core.machine.network import interface_for, network_variables
from ...core.ranks.rank_wrapper import FOLDER
from ...core.ranks.torch_extensions import hold_extensions
from ...core.remote_shell.channel import names
from ...core.remote_shell.choice import LEFT_BY_MPICH
from .config import with_files
from .environment import accelerator_variables, difference, environment_file
from .failure import DeepspeedException
from .layout import Layout, layout
from .options import DEEPSPEED_OPTIONS, Options, choose_transport, read_options
from .plan import Job, plan, unshown
from .remote import Remote
from .single_node import SingleNode
from .target import write_files

PORT_TRIES = 5


class DeepspeedExecutor:
    """``current.deepspeed`` in a ``@deepspeed`` step, whose body runs on every node.

    Attributes
    ----------
    hosts : list of str
        The nodes' addresses, by index.
    n_slots_per_host : int
        Ranks that this node takes.
    is_gpu : bool
        Whether they are GPUs.
    """

    def __init__(
        self,
        gang: Gang,
        flow_datastore: Any,
        results_prefix: str,
        slots: Sequence[int],
        transport: str,
        missing: Sequence[list[str]],
        is_gpu: bool,
        worker_polling_freq: float | None = None,
    ) -> None:
        self.hosts = [node.address for node in gang.nodes]
        self.n_slots_per_host = slots[gang.node_index]
        self.is_gpu = is_gpu
        self.worker_polling_freq = worker_polling_freq
        self._gang, self._flow_datastore, self._results_prefix = gang, flow_datastore, results_prefix
        self._slots, self._transport, self._missing = tuple(slots), transport, list(missing)
        self._remote: Remote | None = None
        self._extensions: dict[str, str] | None = None
        self._runs = 0
        self._told: set[str] = set()
        self._leased: set[int] = set()

    @staticmethod
    def for_single_node(flow: Any, use_gpu: bool = False, n_slots: int = 1) -> SingleNode:
        """DeepSpeed on this machine alone, in a step without ``num_parallel``.

        Parameters
        ----------
        flow : FlowSpec
            The step's ``self``.
        use_gpu : bool
            Whether the slots are GPUs.
        n_slots : int
            Ranks.

        Example
        -------
        ``DeepspeedExecutor.for_single_node(self, use_gpu=True, n_slots=4).run(entrypoint="train.py")``
        """
        return SingleNode(flow, use_gpu, n_slots)

    @suggesting("current.deepspeed.run", {"deepspeed_args": DEEPSPEED_OPTIONS, "entrypoint_args": ()})
    def run(
        self,
        deepspeed_args: Mapping[str, Any] | Sequence[Any] | None = None,
        entrypoint: str | os.PathLike[str] | Callable[..., Any] | None = None,
        entrypoint_args: Mapping[str, Any] | Sequence[Any] | None = None,
        push_results_dir_to_cloud: bool = False,
        local_output_dir: str | os.PathLike[str] | None = None,
        cloud_output_dir: str | None = None,
    ) -> Any:
        """Runs ``entrypoint`` in every rank, on all nodes at once. Every node has to call it.

        Parameters
        ----------
        deepspeed_args : dict or list, optional
            deepspeed's own options, such as {"num_gpus": 4, "bind_cores_to_rank": True} or
            ["--include", "node0@node1:0,2"].
        entrypoint : str, path or callable
            A Python script (a module or a program, where deepspeed_args has "module" or "no_python"), or a function at
            the top level of the flow file or of a module.
        entrypoint_args : dict or list, optional
            For a script, its arguments: {"epochs": 3} becomes ``--epochs 3``, a list passes as it is; a dict among the
            values, such as DeepSpeed's configuration, becomes the path of a file that holds it. For a function, its
            parameters by name or in order.
        push_results_dir_to_cloud : bool
            Whether each node puts its ``local_output_dir`` into the flow's datastore at the end.
        local_output_dir : path, optional
            The folder with the results.
        cloud_output_dir : str, optional
            Its name in the datastore, ``local_output_dir`` where not given; each node has a folder of its index in it.

        Returns
        -------
        list, str or None
            For a function: what the ranks returned, in their order; of all nodes on node 0, of the node itself on the
            others. For a script: where the results were pushed to, or None. None on nodes that take no part.

        Raises
        ------
        BadAttribute
            An argument that cannot be meant. Nothing was started.
        DeepspeedException
            A rank failed. A function's own exception is raised as it is.
        GangFailed
            Another node failed first.

        Example
        -------
        ``current.deepspeed.run(entrypoint="train.py", entrypoint_args={"deepspeed_config": {"train_batch_size": 64}})``
        """
        gang = self._gang
        results = Results.read(
            self._flow_datastore, self._results_prefix, push_results_dir_to_cloud, local_output_dir, cloud_output_dir
        )
        options = read_options(deepspeed_args)
        transport = choose_transport(self._transport, options)
        chosen = layout(self._slots, names(gang.nodes), options)
        wanted_port = read_port(options.values.get("master_port"), "master_port in deepspeed_args") or declared_port(
            os.environ
        )
        self._runs += 1
        name = f"deepspeed-{self._runs}"
        if not callable(entrypoint):
            entrypoint_args = with_files(entrypoint_args, gang.folder, name)
        what = read_entrypoint(entrypoint, entrypoint_args, options.values, gang.folder, "deepspeed_args")
        try:
            agree(gang, chosen, transport, options)
            self._run(name, what, options, chosen, transport, wanted_port)
            if gang.node_index not in chosen.nodes:
                collect_nothing(gang, what)
                return None
            return outcome(gang, what, chosen.nprocs(gang.num_nodes), results, DeepspeedException)
        finally:
            what.remove()
            tidy(gang.folder, name)

    def _run(
        self, name: str, what: Entrypoint, options: Options, chosen: Layout, transport: str, wanted_port: int | None
    ) -> None:
        gang = self._gang
        first = chosen.nodes[0]
        environ = {**os.environ, **self._variables()}
        base = unshown(environ)
        if transport != "none" and self._remote is None:
            # Commands on this node get the environment as it is now; what later calls change goes by another way.
            own = {**base, FOLDER: gang.folder}
            self._remote = Remote.form(gang, self._transport, self._missing, own)
            for pattern in LEFT_BY_MPICH:
                gang.own_files(pattern)
        port = self._port(first, wanted_port)
        for attempt in range(PORT_TRIES):
            remote = self._remote if transport != "none" else None
            job = Job(
                name=name,
                layout=chosen,
                node_index=gang.node_index,
                options=options,
                transport=transport,
                rsh=remote.folder if remote else "",
                interface=interface_for(gang.another_address()) or "",
                main_address=gang.nodes[first].address,
                port=port,
                # Another can be agreed upon only where all nodes are in the launch.
                port_is_ours=wanted_port is None
                and attempt < PORT_TRIES - 1
                and transport == "none"
                and len(chosen.nodes) == gang.num_nodes,
                environ=base,
                folder=gang.folder,
                is_root=os.geteuid() == 0,
            )
            write_files(job, what, difference(remote.environ if remote else base, environ))
            gang.own_files(job.shared_memory)
            try:
                if transport != "none":
                    gang.barrier()  # a rank may start anywhere from here on
                if job.starts_here:
                    gang.launch(plan(job))
                gang.barrier()
                return
            except PortTaken:
                port = self._port(first, None)
            except ProcessFailed as failure:
                where = f"node {gang.node_index}" if transport == "none" else "the gang"
                error = explain(failure, what.name, where, DeepspeedException)
                raise error from error.__cause__

    def _port(self, first: int, wanted: int | None) -> int:
        """A port of the node that has rank 0."""
        gang = self._gang
        port = None
        if gang.node_index == first:
            if wanted is None:
                port = gang.free_port()
            elif wanted not in self._leased:
                gang.lease_port(exact=wanted)
                self._leased.add(wanted)
            port = port or wanted
        return int(gang.broadcast(port, source=first))

    def _variables(self) -> dict[str, str]:
        """What ranks get where the user set nothing, told once."""
        gang = self._gang
        variables = network_variables(gang.another_address(), os.environ)
        variables.update(accelerator_variables(gang.node.gpus, os.environ))
        if self._extensions is None:
            self._extensions = hold_extensions(os.environ, gang.folder)
        variables.update(self._extensions)
        untold = [f"{name}={value}" for name, value in variables.items() if name not in self._told]
        if untold:
            say(f"Set for the ranks, since you set none: {', '.join(untold)}")
            self._told.update(variables)
        return {**environment_file(os.environ, os.getcwd()), **variables}


def agree(gang: Gang, chosen: Layout, transport: str, options: Options) -> None:
    """Every node has to mean the same world. Raises BadAttribute, the same on each, where they do not."""
    own = {"nodes and slots": chosen, "transport": transport, "options": dict(options.values)}
    for index, answer in enumerate(answers := gang.all_gather(own)):
        for name, value in answer.items():
            if value != answers[0][name]:
                raise BadAttribute(
                    f"The nodes call current.deepspeed.run() differently: {name} are {answers[0][name]} on node 0 and "
                    f"{value} on node {index}. Give every node the same deepspeed_args."
                )


def collect_nothing(gang: Gang, what: Entrypoint) -> None:
    """A node that takes no part is there when the others exchange what their ranks returned."""
    if what.call is not None:
        gang.all_gather([])


def tidy(folder: str, name: str) -> None:
    """Remove what was written for one call, which may have held a secret."""
    for entry in os.listdir(folder) if os.path.isdir(folder) else ():
        if entry == f"{name}.json" or entry.startswith(f"{name}-"):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, entry))

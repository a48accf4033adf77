"""``current.deepspeed``: agrees with the other nodes on the ranks of a call, and starts DeepSpeed's launcher."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...core.attributes import declared_port, read_port
from ...core.calls.entrypoint import Entrypoint
from ...core.calls.misplaced_arguments import suggesting
from ...core.calls.run import PortTry, Runs
from ...core.dry_run.call import planning, show_instead
from ...core.gang.gang import Gang
from ...core.gang.restarts import NO_RESTARTS, RestartPolicy
from ...core.machine.network import interface_for, network_variables
from ...core.ranks.rank_wrapper import FOLDER
from ...core.ranks.torch_extensions import hold_extensions
from ...core.remote_shell.channel import node_names
from ...core.remote_shell.choice import LEFT_BY_MPICH
from .call_files import show_files, tidied, with_files, write_files
from .environment import accelerator_variables, difference, environment_file
from .exceptions import DeepspeedException
from .layout import Layout, layout
from .options import DEEPSPEED_OPTIONS, Options, choose_transport, read_options
from .plan import Job, plan, unshown
from .remote import Remote
from .single_node import SingleNode


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
        policy: RestartPolicy = NO_RESTARTS,
    ) -> None:
        self.hosts = [node.address for node in gang.nodes]
        self.n_slots_per_host = slots[gang.node_index]
        self.is_gpu = is_gpu
        self.worker_polling_freq = worker_polling_freq
        self._gang = gang
        self._runs = Runs(gang, DeepspeedException, flow_datastore, results_prefix, policy=policy)
        self._slots, self._transport, self._missing = tuple(slots), transport, list(missing)
        self._remote: Remote | None = None
        self._extensions: dict[str, str] | None = None

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
        dry_run: bool = False,
    ) -> Any:
        """Run ``entrypoint`` in every rank, on all nodes at once. Every node has to call it.

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
        dry_run : bool
            Whether what would start is only shown, in the log of node 0 (docs/dry-runs.md). Nothing starts, and None is
            returned.

        Returns
        -------
        list, str or None
            For a function: what the ranks returned, in their order; of all nodes on node 0, of the node itself on the
            others. For a script: where the results were pushed to, or None. None on nodes that take no part.

        Raises
        ------
        BadAttribute
            An argument that is not valid. Nothing was started.
        DeepspeedException
            A rank failed. A function's own exception is raised as it is.
        GangFailed
            Another node failed first.

        Example
        -------
        ``current.deepspeed.run(entrypoint="train.py", entrypoint_args={"deepspeed_config": {"train_batch_size": 64}})``
        """
        gang, runs = self._gang, self._runs
        results = runs.results(push_results_dir_to_cloud, local_output_dir, cloud_output_dir)
        options = read_options(deepspeed_args)
        transport = choose_transport(self._transport, options)
        chosen = layout(self._slots, node_names(gang.nodes), options)
        wanted_port = read_port(options.values.get("master_port"), "master_port in deepspeed_args") or declared_port(
            os.environ
        )
        runs.count += 1
        name = f"deepspeed-{runs.count}"
        if not callable(entrypoint):
            entrypoint_args = with_files(entrypoint_args, gang.folder, name)
        with (
            show_instead(gang, dry_run, "current.deepspeed.run()") as planned,
            runs.entrypoint(entrypoint, entrypoint_args, options.values, "deepspeed_args") as what,
            tidied(gang.folder, name),
        ):
            world = {"nodes and slots": chosen, "transport": transport, "options": dict(options.values)}
            runs.agree(world, tuple(world), differ)
            self._run(name, what, options, chosen, transport, wanted_port)
            if planned:
                return None
            if gang.node_index not in chosen.nodes:
                collect_nothing(gang, what)
                return None
            return runs.result(what, chosen.nprocs(gang.num_nodes), results)

    def _run(
        self, name: str, what: Entrypoint, options: Options, chosen: Layout, transport: str, wanted_port: int | None
    ) -> None:
        gang = self._gang
        first = chosen.nodes[0]
        environ = {**os.environ, **self._variables()}
        base = unshown(environ)
        if transport != "none" and self._remote is None:
            # Commands on this node get the environment as it is now; later changes go into the ranks' record.
            own = {**base, FOLDER: gang.folder}
            if planning() is None:
                self._remote = Remote.form(gang, self._transport, self._missing, own)
            for pattern in LEFT_BY_MPICH:
                gang.own_files(pattern)
        remote = (self._remote or Remote.planned(gang, base)) if transport != "none" else None

        def start(attempt: PortTry) -> None:
            job = Job(
                name=f"{name}-{attempt.key}",
                layout=chosen,
                node_index=gang.node_index,
                options=options,
                transport=transport,
                rsh=remote.folder if remote else "",
                interface=interface_for(gang.another_address()) or "",
                main_address=gang.nodes[first].address,
                port=attempt.port,
                port_is_ours=attempt.is_ours,
                environ=base,
                folder=gang.folder,
                is_root=os.geteuid() == 0,
                restartable=attempt.restartable,
            )
            write_files(job, what, difference(remote.environ if remote else base, {**environ, **attempt.variables}))
            show_files(job, planning())
            gang.own_files(job.shared_memory)
            if transport != "none":
                gang.barrier()  # from here on, a rank may start on any node
            if job.starts_here:
                gang.launch(plan(job))
            if not attempt.restartable:  # else the end of the try is one
                gang.barrier()

        # Another port can be agreed upon only where all nodes are in the launch.
        is_ours = wanted_port is None and transport == "none" and len(chosen.nodes) == gang.num_nodes
        where = "" if transport == "none" else "the gang"
        self._runs.launch(start, what, self._runs.agreed_port(wanted_port, first), is_ours, first, where)

    def _variables(self) -> dict[str, str]:
        """Variables that the user has not set, shown once."""
        gang = self._gang
        variables = network_variables(gang.another_address(), os.environ)
        variables.update(accelerator_variables(gang.node.gpus, os.environ))
        if self._extensions is None:
            self._extensions = hold_extensions(os.environ, gang.folder)
        variables.update(self._extensions)
        self._runs.show_variables(variables)
        return {**environment_file(os.environ, os.getcwd()), **variables}


def differ(name: str, first: object, other: object, node: int) -> str:
    """The message for nodes that call ``run()`` with different values."""
    return (
        f"The nodes call current.deepspeed.run() differently: {name} are {first} on node 0 and {other} on node {node}. "
        "Give every node the same deepspeed_args."
    )


def collect_nothing(gang: Gang, what: Entrypoint) -> None:
    """Take part in the exchange of return values on a node that has no ranks."""
    if what.call is not None:
        gang.gather([])

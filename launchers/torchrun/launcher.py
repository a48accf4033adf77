"""``current.torch``: agrees with the other nodes on the ranks of a call, and runs them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...core.attributes import declared_port, read_port
from ...core.calls.entrypoint import Entrypoint
from ...core.calls.misplaced_arguments import suggesting
from ...core.calls.run import PortTry, Runs
from ...core.dry_run.call import planning, show_instead
from ...core.exceptions import BadAttribute
from ...core.gang.gang import Gang, left_out, offered
from ...core.gang.launch_plan import LaunchPlan
from ...core.gang.restarts import NO_RESTARTS, RestartPolicy
from ...core.gang.shares import own_neuron_cores
from ...core.gang.spares.worlds import Worlds
from ...core.machine.network import network_variables
from ...core.metaflow_compat.environment import MAIN_IP
from ...core.ranks.torch_extensions import hold_extensions
from .exceptions import TorchrunException, explain
from .options import TORCHRUN_OPTIONS, Options, check_nodes, choose_launcher, choose_nproc, read_options
from .plan import Job, plan

ALIKE = {"launcher": "launcher (chosen by the options)", "master_port": "master_port"}
"""The values that have to be the same on all nodes, with their names for the user."""


class TorchrunExecutor:
    """``current.torch`` in a ``@torchrun`` step: runs a script, or a function, in every rank of the gang.

    ``torchrun_args`` is a dict of the gang's values for torchrun's options. It is for reading only.
    """

    def __init__(
        self,
        gang: Gang,
        flow_datastore: Any,
        results_prefix: str,
        nproc_per_node: int | str | None = None,
        master_port: int | None = None,
        launcher: str | None = None,
        policy: RestartPolicy = NO_RESTARTS,
        worlds: Worlds | None = None,
    ) -> None:
        self._gang = gang
        self._runs = Runs(gang, TorchrunException, flow_datastore, results_prefix, explain, policy, worlds)
        self._nproc = nproc_per_node
        self._master_port = master_port
        self._launcher = launcher
        self._network: dict[str, str] | None = None
        self.torchrun_args: dict[str, Any] = {
            "nnodes": len(self._runs.nodes),
            "master_addr": gang.main_address,
            "master_port": offered(gang).get("master_port", master_port),
            "node_rank": gang.node_index,
            "nproc_per_node": self._choose_nproc(None, Options({})),
        }

    @suggesting("current.torch.run", {"torchrun_args": TORCHRUN_OPTIONS, "entrypoint_args": ()})
    def run(
        self,
        torchrun_args: Mapping[str, Any] | Sequence[Any] | None = None,
        entrypoint: str | os.PathLike[str] | Callable[..., Any] | None = None,
        entrypoint_args: Mapping[str, Any] | Sequence[Any] | None = None,
        nproc_per_node: int | str | None = None,
        push_results_dir_to_cloud: bool = False,
        local_output_dir: str | os.PathLike[str] | None = None,
        cloud_output_dir: str | None = None,
        dry_run: bool = False,
    ) -> Any:
        """Run ``entrypoint`` in every rank, on all nodes at once. Every node has to call it.

        Parameters
        ----------
        torchrun_args : dict or list, optional
            torchrun's own options, such as {"max_restarts": 2}. Those that are its agent's to do (max_restarts, tee,
            log_dir, rdzv_backend ...) start the agent; otherwise the gang starts the ranks itself, which is faster.
        entrypoint : str, path or callable
            A Python script (a module or a program, where torchrun_args has "module" or "no_python"), or a function at
            the top level of the flow file or of a module.
        entrypoint_args : dict or list, optional
            For a script, its arguments: {"epochs": 3} becomes ``--epochs 3``, a list passes as it is. For a function,
            its parameters by name or in order.
        nproc_per_node : int or str, optional
            Ranks on this node: a number, "gpu", "cpu" or "auto" (the node's GPUs, or 1). Taken from torchrun_args, else
            the decorator, else "auto", where it is not given.
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
            others. For a script: where the results were pushed to, or None. On a node that has no ranks, since it waits
            as a spare one: [], or None.

        Raises
        ------
        BadAttribute
            An argument that is not valid. Nothing was started.
        TorchrunException
            A rank of this node failed. A function's own exception is raised as it is.
        GangFailed
            Another node failed first.

        Example
        -------
        ``losses = current.torch.run(entrypoint=train, entrypoint_args={"epochs": 3}, nproc_per_node=2)``
        """
        runs = self._runs
        results = runs.results(push_results_dir_to_cloud, local_output_dir, cloud_output_dir)
        options = read_options(torchrun_args)
        check_nodes(options, self._gang.node_index, len(runs.nodes))
        self._check_master_addr(options)
        nproc = self._choose_nproc(nproc_per_node, options)
        launcher = choose_launcher(self._launcher, options, os.environ)
        wanted_port = (
            read_port(options.values.get("master_port"), "master_port in torchrun_args")
            or self._master_port
            or declared_port(os.environ)
        )
        numbered = launcher == "torchrun"
        with (
            show_instead(self._gang, dry_run, "current.torch.run()") as planned,
            runs.entrypoint(entrypoint, entrypoint_args, options.values, "torchrun_args", numbered) as what,
        ):
            nprocs = self._run(what, options, nproc, launcher, wanted_port)
            return None if planned else runs.result(what, nprocs, results)

    def _choose_nproc(self, call: int | str | None, options: Options) -> int:
        node = self._gang.node
        gpus = node.gpus or int(self._gang.node_index in left_out(self._gang))  # it has no ranks, with or without GPUs
        return choose_nproc(call, options, self._nproc, gpus, node.cpus, own_neuron_cores(self._gang))

    def _run(
        self, what: Entrypoint, options: Options, nproc: int, launcher: str, wanted_port: int | None
    ) -> tuple[int, ...]:
        gang, runs = self._gang, self._runs
        is_first = runs.count == 0
        runs.count += planning() is None  # a dry run has the port of the call that comes after it
        offered_port = int(offered(gang)["master_port"]) if is_first and wanted_port is None else None
        own = {"nproc": nproc, "launcher": launcher, "master_port": wanted_port}
        answers = runs.agree({**own, "port": runs.port(wanted_port, first=offered_port)}, tuple(ALIKE), differ)
        environ = {**os.environ, **self._variables(threads=launcher == "direct" and nproc > 1)}

        def nprocs(nodes: Sequence[int]) -> tuple[int, ...]:
            return tuple(answers[node]["nproc"] for node in nodes)

        def plan_of(attempt: PortTry, nodes: tuple[int, ...]) -> LaunchPlan:
            job = Job(
                entrypoint=what.target,
                arguments=what.arguments,
                options=options,
                nprocs=nprocs(nodes),
                node_index=nodes.index(gang.node_index),
                main_address=gang.main_address,
                port=attempt.port,
                port_is_ours=attempt.is_ours,
                launcher=launcher,
                environ=environ,
                folder=gang.folder,
                key=attempt.key,
                restartable=attempt.restartable,
                restart=attempt.variables,
                warm=attempt.warm,
                nodes=nodes if runs.has_spares else (),
            )
            return plan(job)

        def start(attempt: PortTry) -> None:
            rank, size = runs.nodes.index(gang.node_index), len(runs.nodes)
            self.torchrun_args.update(master_port=attempt.port, nproc_per_node=nproc, nnodes=size, node_rank=rank)
            gang.launch(plan_of(attempt, runs.nodes))

        def would_be(attempt: PortTry) -> LaunchPlan:
            return plan_of(attempt, (*runs.nodes, gang.node_index))

        runs.launch(start, what, answers[0]["port"], is_ours=wanted_port is None, would_be=would_be)
        return nprocs(runs.nodes)

    def _check_master_addr(self, options: Options) -> None:
        given = options.values.get("master_addr")
        if given is None or given in _names_of_control(self._gang):
            return
        try:
            addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(given.strip("[]"), None)}
        except (OSError, UnicodeError):
            addresses = set()
        if self._gang.main_address not in addresses:
            raise BadAttribute(
                f"torchrun_args has master_addr={given}, but node 0 of this gang, which has rank 0, is reached at "
                f"{self._gang.main_address}. Leave master_addr out."
            )

    def _variables(self, threads: bool) -> dict[str, str]:
        """Variables that the user has not set, shown once; ``threads`` sets OMP_NUM_THREADS as the agent does."""
        gang = self._gang
        if self._network is None:
            self._network = network_variables(gang.another_address(), os.environ)
            self._network.update(hold_extensions(os.environ, gang.folder))
        variables = dict(self._network)
        if threads and "OMP_NUM_THREADS" not in os.environ:
            variables["OMP_NUM_THREADS"] = "1"
        self._runs.show_variables(variables)
        return variables


def differ(name: str, first: object, other: object, node: int) -> str:
    """The message for nodes that call ``run()`` with different values."""
    return (
        f"The nodes call current.torch.run() differently: {ALIKE[name]} is {first!r} on node 0 and {other!r} on node "
        f"{node}. Give every node the same torchrun_args, but for nproc_per_node."
    )


def _names_of_control(gang: Gang) -> set[str]:
    """Names that a step may have for node 0: its address, its hostname, and ``current.parallel.main_ip``."""
    return {gang.main_address, gang.nodes[0].address, gang.nodes[0].hostname, os.environ.get(MAIN_IP, "")}

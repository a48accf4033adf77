"""DeepSpeed on this machine alone, in a plain step, under a guard that ends what was started."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metaflow import current

from ...core.attributes import read_port
from ...core.calls.entrypoint import Entrypoint, read_entrypoint
from ...core.calls.misplaced_arguments import suggesting
from ...core.calls.one_node import run_on_one_node
from ...core.calls.returns import Results
from ...core.dry_run.call import is_wanted, planning
from ...core.exceptions import BadAttribute
from ...core.gang.launch_plan import LaunchPlan
from ...core.guard.host.ports import lease_port
from ...core.guard_client.single_node import SingleNodeGuard
from ...core.machine.network import network_variables
from ...core.metaflow_compat.datastores import datastore_of_running_flow
from ...core.ranks.torch_extensions import hold_extensions
from ...core.storage.results import results_prefix
from .call_files import show_files, with_files, write_files
from .constants import DEEPSPEED_SUFFIX
from .environment import accelerator_variables, difference, environment_file
from .exceptions import DeepspeedException
from .layout import layout
from .options import DEEPSPEED_OPTIONS, read_options
from .plan import Job, plan, unshown


class SingleNode:
    """The result of ``DeepspeedExecutor.for_single_node``: :meth:`run` as in a gang, over this machine's slots."""

    def __init__(self, flow: Any, use_gpu: bool = False, n_slots: int = 1) -> None:
        if n_slots < 1:
            raise BadAttribute(f"for_single_node(n_slots={n_slots}): it is a number of ranks, 1 or more.")
        self.hosts = ["127.0.0.1"]
        self.n_slots_per_host, self.is_gpu = n_slots, use_gpu
        self._flow = flow
        self._runs = 0

    @suggesting(
        "DeepspeedExecutor.for_single_node(...).run", {"deepspeed_args": DEEPSPEED_OPTIONS, "entrypoint_args": ()}
    )
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
        """Run ``entrypoint`` in every rank of this machine; parameters, returns and exceptions as in a gang.

        Raises
        ------
        BadAttribute
            An argument that is not valid. Nothing was started.
        DeepspeedException
            A rank failed. A function's own exception is raised as it is.
        GuardDied
            The process that watches over the ranks was killed; they were ended.
        """
        prefix = results_prefix(DEEPSPEED_SUFFIX, current.flow_name, str(current.run_id), current.step_name)
        datastore = datastore_of_running_flow(self._flow)
        results = Results.read(datastore, prefix, push_results_dir_to_cloud, local_output_dir, cloud_output_dir)
        options = read_options(deepspeed_args)
        chosen = layout([self.n_slots_per_host], [["node0"]], options)
        wanted_port = read_port(options.values.get("master_port"), "master_port in deepspeed_args")
        self._runs += 1
        name = f"deepspeed-{self._runs}"

        def read(guard: SingleNodeGuard) -> Entrypoint:
            arguments = entrypoint_args if callable(entrypoint) else with_files(entrypoint_args, guard.folder, name)
            return read_entrypoint(entrypoint, arguments, options.values, guard.folder, "deepspeed_args")

        def start(guard: SingleNodeGuard, what: Entrypoint) -> LaunchPlan:
            environ = {
                **os.environ,
                **environment_file(os.environ, os.getcwd()),
                **network_variables("127.0.0.1", os.environ),
                **accelerator_variables(int(self.is_gpu), os.environ),
                **hold_extensions(os.environ, guard.folder),
            }
            job = Job(
                name=name,
                layout=chosen,
                node_index=0,
                options=options,
                transport="none",
                rsh="",
                interface="",
                main_address="127.0.0.1",
                port=wanted_port or lease.port,
                port_is_ours=False,
                environ=unshown(environ),
                folder=guard.folder,
                is_root=False,
            )
            write_files(job, what, difference(job.environ, environ))
            show_files(job, planning())
            guard.own_files(job.shared_memory)
            return plan(job)

        lease = lease_port("127.0.0.1")
        try:
            ranks = sum(map(len, chosen.slots))
            returns = run_on_one_node(read, start, ranks, DeepspeedException, dry_run=dry_run)
        finally:
            lease.release()
        if is_wanted(dry_run):
            return None
        return results.push(0) if returns is None else returns

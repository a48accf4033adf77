"""`@slurm`: runs a step as a Slurm job, and a gang as one job of several nodes."""

from __future__ import annotations

import os
import sys
from typing import Any

from metaflow.decorators import StepDecorator

from ...core.metaflow_compat import environment, metadata
from ...core.metaflow_compat.steps import is_control
from ...core.metaflow_compat.tasks import appear_on_current, joined_tasks, set_joined_tasks
from ...core.rendezvous.local_nodes import task_ids
from ..metaflow_compat import code_package, step_command
from .attributes import NAMES, read, with_defaults
from .exceptions import SlurmException

FOLDER = "METAFLOW_SLURM_JOB_FOLDER"
"""The job's folder, in its tasks."""

OF_THE_JOB = {
    "slurm-job-id": "SLURM_JOB_ID",
    "slurm-cluster": "SLURM_CLUSTER_NAME",
    "slurm-partition": "SLURM_JOB_PARTITION",
    "slurm-node": "SLURMD_NODENAME",
    "slurm-nodes": "SLURM_JOB_NODELIST",
}
"""What a task has as Metaflow's metadata, and Slurm's variable of it."""


class SlurmDecorator(StepDecorator):  # type: ignore[misc]
    """
    Specifies that this step runs as a Slurm job. A step with `num_parallel` is one job of that many nodes.

    Parameters
    ----------
    partition : str, optional, default None
        Partition of the job. Each attribute has a setting METAFLOW_SLURM_<NAME>, which is used where the attribute is
        left out; without one, Slurm's own default applies.
    account : str, optional, default None
        Account that the job is charged to.
    qos : str, optional, default None
        Quality of service.
    constraint : str, optional, default None
        Features that the nodes must have.
    cpu : float | str, optional, default None
        Processors of each node. The larger of this and `@resources(cpu=...)` counts.
    gpu : float | str, optional, default None
        GPUs of each node. The larger of this and `@resources(gpu=...)` counts.
    memory : float | str, optional, default None
        Megabytes of memory of each node. The larger of this and `@resources(memory=...)` counts.
    time : int | str, optional, default None
        Time limit of the job: minutes, or Slurm's own form ("1-12:00:00"). Without it `@timeout` is the limit, and
        without that the partition's.
    exclusive : bool, optional, default False
        Whether no other job runs on the nodes.
    signal : int, optional, default 30
        Seconds before the time limit at which `current.gang.on_preemption` is called; 0 for never.
    sbatch : str | list[str], optional, default None
        More options of sbatch.
    container : str | list[str], optional, default None
        What srun gets before the task's command, for a site with containers: options such as
        `--container-image=image.sqsh`, or a command such as `apptainer exec image.sif`.
    executable : str, optional, default None
        Python of the nodes; by default the one that runs the flow.
    login : str, optional, default None
        Login node to submit from over SSH (`user@host`), where the run is elsewhere; or slurmrestd
        (`unix:///path/of/socket`, `http://host:port` with a token in SLURM_JWT).
    folder : str, optional, default None
        Folder for the files of jobs, which all nodes have to see. By default inside the local datastore.
    """

    name = "slurm"
    defaults = dict.fromkeys(NAMES)

    supports_conda_environment = True
    target_platform = "linux-64"

    package: Any = None
    stored: code_package.CodePackage | None = None

    def step_init(
        self, flow: Any, graph: Any, step: str, decos: list[Any], environment: Any, flow_datastore: Any, logger: Any
    ) -> None:
        for other in decos:
            if other is not self and other.name in ("batch", "kubernetes", "slurm"):
                raise SlurmException(f"Step *{step}* has @slurm and @{other.name}: a step runs in one place.")
        self.flow_datastore = flow_datastore
        self.attributes.update(with_defaults(self.attributes))
        self.attributes.update(step_command.resources(decos, self, ("cpu", "gpu", "memory")))
        self.limit_s = step_command.run_time_limit(decos)
        read(self.attributes)

    def runtime_init(self, flow: Any, graph: Any, package: Any, run_id: str) -> None:
        self.package = package

    def runtime_task_created(
        self,
        task_datastore: Any,
        task_id: str,
        split_index: int | None,
        input_paths: list[str] | None,
        is_cloned: bool,
        ubf_context: str | None,
    ) -> None:
        if not is_cloned and SlurmDecorator.stored is None:
            SlurmDecorator.stored = code_package.store(self.flow_datastore, self.package)

    def runtime_step_cli(
        self, cli_args: Any, retry_count: int, max_user_code_retries: int, ubf_context: str | None
    ) -> None:
        if retry_count > max_user_code_retries:
            return  # @catch's own step, which needs no job
        assert self.stored is not None
        cli_args.commands = ["slurm", "step"]
        cli_args.command_args.extend(self.stored)
        # Not by "in": signal=0 is False's equal, and means never.
        given = {
            name: value for name, value in self.attributes.items() if value not in (None, "") and value is not False
        }
        cli_args.command_options.update({name: _as_text(value) for name, value in given.items()})
        cli_args.command_options["run-time-limit"] = self.limit_s
        cli_args.entrypoint[0] = sys.executable

    def task_pre_step(
        self,
        step_name: str,
        task_datastore: Any,
        provider: Any,
        run_id: str,
        task_id: str,
        flow: Any,
        graph: Any,
        retry_count: int,
        max_user_code_retries: int,
        ubf_context: str | None,
        inputs: Any,
    ) -> None:
        if FOLDER not in os.environ:
            return  # @catch's own step
        appear_on_current({"spot_termination_notice": os.path.join(os.environ[FOLDER], "notice")})
        if is_control(ubf_context) and not joined_tasks(flow):
            nodes = int(os.environ.get(environment.NUM_NODES, 1))
            set_joined_tasks(flow, [f"{run_id}/{step_name}/{node}" for node in task_ids(task_id, nodes)])
        values = {name: os.environ.get(variable, "") for name, variable in OF_THE_JOB.items()}
        if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
            values["slurm-job-id"] = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
        metadata.register(
            provider, run_id, step_name, task_id, retry_count, {name: text for name, text in values.items() if text}
        )


def _as_text(value: Any) -> str:
    """An attribute as a word of a command line."""
    import shlex

    return shlex.join(map(str, value)) if isinstance(value, list | tuple) else str(value)

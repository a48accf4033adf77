"""What metaflow-gang adds to Metaflow, for type checkers and editors. Made by `make docs` of the code."""

from collections.abc import Callable
from typing import Any, TypeVar, overload

from . import huggingface_card_callback as huggingface_card_callback
from .metaflow_current import Current
from metaflow_extensions.gang.core.gang.gang import Gang
from metaflow_extensions.gang.core.gang_log import gang_log as gang_log
from metaflow_extensions.gang.launchers.deepspeed.launcher import DeepspeedExecutor
from metaflow_extensions.gang.launchers.horovod.run import horovod_run as horovod_run
from metaflow_extensions.gang.launchers.jax.cluster import Place
from metaflow_extensions.gang.launchers.mpi.launcher import MPIExecutor
from metaflow_extensions.gang.launchers.ray.cluster import RayCluster
from metaflow_extensions.gang.launchers.tensorflow.launcher import TensorflowExecutor
from metaflow_extensions.gang.launchers.torchrun.launcher import TorchrunExecutor
from metaflow_extensions.gang.launchers.torchrun.single_node import TorchrunSingleNodeMultiGPU as TorchrunSingleNodeMultiGPU

_Step = TypeVar("_Step", bound=Callable[..., Any])

class _Current(Current):
    # What other decorators put here: card, parallel, checkpoint ...
    def __getattr__(self, name: str) -> Any: ...
    @property
    def deepspeed(self) -> DeepspeedExecutor:
        """Runs a script or a function in every rank: `current.deepspeed.run(entrypoint="train.py")`."""
    @property
    def gang(self) -> Gang:
        """This node's view of the gang."""
    @property
    def jax(self) -> Place:
        """`coordinator_address`, `process_id`, `num_processes`, for those who give them to JAX themselves."""
    @property
    def mpi(self) -> MPIExecutor:
        """`run`, `exec`, `cc`, `broadcast_file`, `hosts`: `current.mpi.run(program="python train.py")`."""
    @property
    def ray(self) -> RayCluster:
        """The cluster: `address`, `nodes`, `dashboard_url`, `storage_path`; `run()` runs a script on its head node."""
    @property
    def ray_storage_path(self) -> str:
        """A folder of this attempt in the flow's datastore, for the checkpoints of Ray Train and Tune."""
    @property
    def tensorflow(self) -> TensorflowExecutor:
        """`config`, `is_chief`, `worker_index`, `save_path()`, `data_options()`; `run()` for a process of its own."""
    @property
    def torch(self) -> TorchrunExecutor:
        """Runs a script or a function in every rank: `current.torch.run(entrypoint="train.py")`."""

current: _Current

@overload
def deepspeed(step: _Step, /) -> _Step:
    """Runs the step on every node of a gang, and gives it `current.deepspeed.run`, which starts DeepSpeed's ranks on them.

    Parameters
    ----------
    all_nodes_started_timeout : float, optional, default 600
        Seconds to wait for the last node to start.
    card : bool, default False
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    end_timeout : float, optional, default 30
        Seconds that what comes after the body may take on a node once the gang has failed.
    lost_host_timeout : float, optional, default 30
        Seconds in which a host that does not answer any more ends the gang.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node ends the gang that does not answer while its host does.
    stall_timeout : float, optional, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    transport : str, default "auto"
        How ranks are started: "none" (each node's own launcher starts its own, which needs nothing in the image), "ssh"
        (node 0 starts all, over a private sshd on each node), "channel" (the same over an encrypted connection of the
        gang), or "auto" ("none", unless an option names a launcher that reaches other nodes).
    worker_polling_freq : float, optional, default None
        Accepted for the sake of older flows. Nothing polls any more.
    use_sudo : bool, default False
        Accepted for the sake of older flows. Nothing needs root any more.
    """

@overload
def deepspeed(
    *,
    all_nodes_started_timeout: float | None = None,
    card: bool = False,
    end_timeout: float | None = None,
    lost_host_timeout: float | None = None,
    frozen_node_timeout: float | None = None,
    stall_timeout: float | None = None,
    transport: str = "auto",
    worker_polling_freq: float | None = None,
    use_sudo: bool = False,
) -> Callable[[_Step], _Step]:
    """Runs the step on every node of a gang, and gives it `current.deepspeed.run`, which starts DeepSpeed's ranks on them.

    Parameters
    ----------
    all_nodes_started_timeout : float, optional, default 600
        Seconds to wait for the last node to start.
    card : bool, default False
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    end_timeout : float, optional, default 30
        Seconds that what comes after the body may take on a node once the gang has failed.
    lost_host_timeout : float, optional, default 30
        Seconds in which a host that does not answer any more ends the gang.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node ends the gang that does not answer while its host does.
    stall_timeout : float, optional, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    transport : str, default "auto"
        How ranks are started: "none" (each node's own launcher starts its own, which needs nothing in the image), "ssh"
        (node 0 starts all, over a private sshd on each node), "channel" (the same over an encrypted connection of the
        gang), or "auto" ("none", unless an option names a launcher that reaches other nodes).
    worker_polling_freq : float, optional, default None
        Accepted for the sake of older flows. Nothing polls any more.
    use_sudo : bool, default False
        Accepted for the sake of older flows. Nothing needs root any more.
    """

@overload
def gang(step: _Step, /) -> _Step:
    """Runs the step on all nodes of a cluster that lives as long as the step. Start it with
    `self.next(self.step_name, num_parallel=N)`.

    Parameters
    ----------
    all_nodes_started_timeout : float, optional, default 600
        Seconds in which all nodes must have joined, counted from this node's own start.
    lost_host_timeout : float, optional, default 30
        Seconds in which a host that does not answer any more ends the gang. An interruption of the network that is
        shorter than two thirds of it ends nothing.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node ends the gang that does not answer while its host does: a paused container.
    stall_timeout : float, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    card : bool, default False
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    end_timeout : float, optional, default 30
        Seconds that what Metaflow and other decorators do after a body may take once the gang has failed.
    """

@overload
def gang(
    *,
    all_nodes_started_timeout: float | None = None,
    lost_host_timeout: float | None = None,
    frozen_node_timeout: float | None = None,
    stall_timeout: float = None,
    card: bool = False,
    end_timeout: float | None = None,
) -> Callable[[_Step], _Step]:
    """Runs the step on all nodes of a cluster that lives as long as the step. Start it with
    `self.next(self.step_name, num_parallel=N)`.

    Parameters
    ----------
    all_nodes_started_timeout : float, optional, default 600
        Seconds in which all nodes must have joined, counted from this node's own start.
    lost_host_timeout : float, optional, default 30
        Seconds in which a host that does not answer any more ends the gang. An interruption of the network that is
        shorter than two thirds of it ends nothing.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node ends the gang that does not answer while its host does: a paused container.
    stall_timeout : float, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    card : bool, default False
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    end_timeout : float, optional, default 30
        Seconds that what Metaflow and other decorators do after a body may take once the gang has failed.
    """

@overload
def huggingface_card(step: _Step, /) -> _Step:
    """Gives the step two cards that follow the training of a Hugging Face Trainer while it runs: its arguments, and its
    metrics as curves. The Trainer needs `MetaflowHuggingFaceCardCallback` among its callbacks. Works with every
    launcher, and in a step without one.
    """

@overload
def huggingface_card() -> Callable[[_Step], _Step]:
    """Gives the step two cards that follow the training of a Hugging Face Trainer while it runs: its arguments, and its
    metrics as curves. The Trainer needs `MetaflowHuggingFaceCardCallback` among its callbacks. Works with every
    launcher, and in a step without one.
    """

@overload
def jax(step: _Step, /) -> _Step:
    """Runs the step on every node of a gang, where `jax.distributed.initialize()` finds the other nodes.

    Parameters
    ----------
    all_nodes_started_timeout : float, optional, default 600
        Seconds to wait for the last node to start.
    card : bool, default False
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    end_timeout : float, optional, default 30
        Seconds that what comes after the body may take on a node once the gang has failed.
    lost_host_timeout : float, optional, default 30
        Seconds in which a host that does not answer any more ends the gang.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node ends the gang that does not answer while its host does.
    stall_timeout : float, optional, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    """

@overload
def jax(
    *,
    all_nodes_started_timeout: float | None = None,
    card: bool = False,
    end_timeout: float | None = None,
    lost_host_timeout: float | None = None,
    frozen_node_timeout: float | None = None,
    stall_timeout: float | None = None,
) -> Callable[[_Step], _Step]:
    """Runs the step on every node of a gang, where `jax.distributed.initialize()` finds the other nodes.

    Parameters
    ----------
    all_nodes_started_timeout : float, optional, default 600
        Seconds to wait for the last node to start.
    card : bool, default False
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    end_timeout : float, optional, default 30
        Seconds that what comes after the body may take on a node once the gang has failed.
    lost_host_timeout : float, optional, default 30
        Seconds in which a host that does not answer any more ends the gang.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node ends the gang that does not answer while its host does.
    stall_timeout : float, optional, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    """

@overload
def metaflow_ray(step: _Step, /) -> _Step:
    """Runs the step's body on the head node of a Ray cluster that has all nodes of the gang, and lives as long as the
    step. `ray.init()` in the body joins it.

    Parameters
    ----------
    all_nodes_started_timeout : float, optional, default 600
        Seconds to wait for the last node to start.
    card : bool, default False
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    end_timeout : float, optional, default 30
        Seconds that what comes after the body may take on a node once the gang has failed.
    lost_host_timeout : float, optional, default 30
        Seconds in which a host that does not answer any more ends the gang.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node ends the gang that does not answer while its host does.
    stall_timeout : float, optional, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    main_port : int | str, optional, default None
        Port of the head that the other nodes, and `ray.init`, connect to; a free one by default.
    heartbeat_timeout : float, default 10
        Seconds after which Ray's head gives up a node that does not answer. A lost host is noticed within 10 s anyway.
    unreachable_timeout : float, default 60
        Seconds after which a node, or a program, gives up a head that does not answer.
    tolerate_lost_workers : bool, default False
        Whether the step goes on where a node other than the head is lost; Ray starts its tasks again on those left.
    enable_worker_logs : bool, default False
        Whether what Ray's workers print on a node is in the log of that node's task, too.
    logging_level : str, optional, default None
        Shows the output of `ray start` on each node, from this level on, such as "info" or "debug".
    log_style : str, optional, default None
        The same, in a style: "pretty", "record" or "auto".
    enable_dashboard : bool, default False
        Whether the head serves Ray's dashboard, on the address by which the nodes reach it.
    dashboard_port : int | str, optional, default None
        The dashboard's port; 8265 where it is free by default, and else another one.
    worker_polling_freq : float, optional, default None
        Accepted for the sake of older flows. Nothing polls any more.
    """

@overload
def metaflow_ray(
    *,
    all_nodes_started_timeout: float | None = None,
    card: bool = False,
    end_timeout: float | None = None,
    lost_host_timeout: float | None = None,
    frozen_node_timeout: float | None = None,
    stall_timeout: float | None = None,
    main_port: int | str | None = None,
    heartbeat_timeout: float = 10,
    unreachable_timeout: float = 60,
    tolerate_lost_workers: bool = False,
    enable_worker_logs: bool = False,
    logging_level: str | None = None,
    log_style: str | None = None,
    enable_dashboard: bool = False,
    dashboard_port: int | str | None = None,
    worker_polling_freq: float | None = None,
) -> Callable[[_Step], _Step]:
    """Runs the step's body on the head node of a Ray cluster that has all nodes of the gang, and lives as long as the
    step. `ray.init()` in the body joins it.

    Parameters
    ----------
    all_nodes_started_timeout : float, optional, default 600
        Seconds to wait for the last node to start.
    card : bool, default False
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    end_timeout : float, optional, default 30
        Seconds that what comes after the body may take on a node once the gang has failed.
    lost_host_timeout : float, optional, default 30
        Seconds in which a host that does not answer any more ends the gang.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node ends the gang that does not answer while its host does.
    stall_timeout : float, optional, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    main_port : int | str, optional, default None
        Port of the head that the other nodes, and `ray.init`, connect to; a free one by default.
    heartbeat_timeout : float, default 10
        Seconds after which Ray's head gives up a node that does not answer. A lost host is noticed within 10 s anyway.
    unreachable_timeout : float, default 60
        Seconds after which a node, or a program, gives up a head that does not answer.
    tolerate_lost_workers : bool, default False
        Whether the step goes on where a node other than the head is lost; Ray starts its tasks again on those left.
    enable_worker_logs : bool, default False
        Whether what Ray's workers print on a node is in the log of that node's task, too.
    logging_level : str, optional, default None
        Shows the output of `ray start` on each node, from this level on, such as "info" or "debug".
    log_style : str, optional, default None
        The same, in a style: "pretty", "record" or "auto".
    enable_dashboard : bool, default False
        Whether the head serves Ray's dashboard, on the address by which the nodes reach it.
    dashboard_port : int | str, optional, default None
        The dashboard's port; 8265 where it is free by default, and else another one.
    worker_polling_freq : float, optional, default None
        Accepted for the sake of older flows. Nothing polls any more.
    """

@overload
def mpi(step: _Step, /) -> _Step:
    """Runs the step's body on node 0 of a gang, and gives it `current.mpi.run`, which is mpirun over all its nodes.

    Parameters
    ----------
    all_nodes_started_timeout : float, optional, default 600
        Seconds to wait for the last node to start.
    card : bool, default False
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    end_timeout : float, optional, default 30
        Seconds that what comes after the body may take on a node once the gang has failed.
    lost_host_timeout : float, optional, default 30
        Seconds in which a host that does not answer any more ends the gang.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node ends the gang that does not answer while its host does.
    stall_timeout : float, optional, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    transport : str, default "auto"
        How mpirun starts its daemons on the other nodes: "ssh" (a private sshd on each node, with keys made for this
        step), "channel" (without SSH: over an encrypted connection of the gang), or "auto" (ssh where OpenSSH's client
        and server are on every node).
    worker_polling_freq : float, optional, default None
        Accepted for the sake of older flows. Nothing polls any more.
    """

@overload
def mpi(
    *,
    all_nodes_started_timeout: float | None = None,
    card: bool = False,
    end_timeout: float | None = None,
    lost_host_timeout: float | None = None,
    frozen_node_timeout: float | None = None,
    stall_timeout: float | None = None,
    transport: str = "auto",
    worker_polling_freq: float | None = None,
) -> Callable[[_Step], _Step]:
    """Runs the step's body on node 0 of a gang, and gives it `current.mpi.run`, which is mpirun over all its nodes.

    Parameters
    ----------
    all_nodes_started_timeout : float, optional, default 600
        Seconds to wait for the last node to start.
    card : bool, default False
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    end_timeout : float, optional, default 30
        Seconds that what comes after the body may take on a node once the gang has failed.
    lost_host_timeout : float, optional, default 30
        Seconds in which a host that does not answer any more ends the gang.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node ends the gang that does not answer while its host does.
    stall_timeout : float, optional, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    transport : str, default "auto"
        How mpirun starts its daemons on the other nodes: "ssh" (a private sshd on each node, with keys made for this
        step), "channel" (without SSH: over an encrypted connection of the gang), or "auto" (ssh where OpenSSH's client
        and server are on every node).
    worker_polling_freq : float, optional, default None
        Accepted for the sake of older flows. Nothing polls any more.
    """

@overload
def slurm(step: _Step, /) -> _Step:
    """Specifies that this step runs as a Slurm job. A step with `num_parallel` is one job of that many nodes.

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
        Login node to submit from over SSH (`user@host`), where the run is elsewhere.
    folder : str, optional, default None
        Folder for the files of jobs, which all nodes have to see. By default inside the local datastore.
    """

@overload
def slurm(
    *,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    constraint: str | None = None,
    cpu: float | str | None = None,
    gpu: float | str | None = None,
    memory: float | str | None = None,
    time: int | str | None = None,
    exclusive: bool | None = None,
    signal: int | None = None,
    sbatch: str | list[str] | None = None,
    container: str | list[str] | None = None,
    executable: str | None = None,
    login: str | None = None,
    folder: str | None = None,
) -> Callable[[_Step], _Step]:
    """Specifies that this step runs as a Slurm job. A step with `num_parallel` is one job of that many nodes.

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
        Login node to submit from over SSH (`user@host`), where the run is elsewhere.
    folder : str, optional, default None
        Folder for the files of jobs, which all nodes have to see. By default inside the local datastore.
    """

@overload
def tensorflow(step: _Step, /) -> _Step:
    """Runs the step on every node of a gang, with a TF_CONFIG that lists all of them for TensorFlow.

    Parameters
    ----------
    all_nodes_started_timeout : float, optional, default 600
        Seconds to wait for the last node to start.
    card : bool, default False
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    end_timeout : float, optional, default 30
        Seconds that what comes after the body may take on a node once the gang has failed.
    lost_host_timeout : float, optional, default 30
        Seconds in which a host that does not answer any more ends the gang.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node ends the gang that does not answer while its host does.
    stall_timeout : float, optional, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    chief : bool, default False
        Whether node 0's task is of the type "chief"; else it is worker 0, which does what a chief does.
    ps : int, default 0
        How many nodes are parameter servers, for ParameterServerStrategy: those after the workers.
    evaluator : bool, default False
        Whether the last node's task is of the type "evaluator", which is not in the cluster.
    """

@overload
def tensorflow(
    *,
    all_nodes_started_timeout: float | None = None,
    card: bool = False,
    end_timeout: float | None = None,
    lost_host_timeout: float | None = None,
    frozen_node_timeout: float | None = None,
    stall_timeout: float | None = None,
    chief: bool = False,
    ps: int = 0,
    evaluator: bool = False,
) -> Callable[[_Step], _Step]:
    """Runs the step on every node of a gang, with a TF_CONFIG that lists all of them for TensorFlow.

    Parameters
    ----------
    all_nodes_started_timeout : float, optional, default 600
        Seconds to wait for the last node to start.
    card : bool, default False
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    end_timeout : float, optional, default 30
        Seconds that what comes after the body may take on a node once the gang has failed.
    lost_host_timeout : float, optional, default 30
        Seconds in which a host that does not answer any more ends the gang.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node ends the gang that does not answer while its host does.
    stall_timeout : float, optional, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    chief : bool, default False
        Whether node 0's task is of the type "chief"; else it is worker 0, which does what a chief does.
    ps : int, default 0
        How many nodes are parameter servers, for ParameterServerStrategy: those after the workers.
    evaluator : bool, default False
        Whether the last node's task is of the type "evaluator", which is not in the cluster.
    """

@overload
def torchrun(step: _Step, /) -> _Step:
    """Runs the step on every node of a gang, and gives it `current.torch.run`, which starts PyTorch's ranks on them.

    Parameters
    ----------
    master_port : int | str, optional, default None
        Port on node 0 where the ranks meet. Where it is not given, the one that
        `@kubernetes(port=...)` names, else a free one is agreed upon.
    all_nodes_started_timeout : float, optional, default 600
        Seconds to wait for the last node to start.
    card : bool, default False
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    end_timeout : float, optional, default 30
        Seconds that what comes after the body may take on a node once the gang has failed.
    lost_host_timeout : float, optional, default 30
        Seconds in which a host that does not answer any more ends the gang.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node ends the gang that does not answer while its host does.
    stall_timeout : float, optional, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    nproc_per_node : int | str, optional, default None
        Ranks on each node: a number, "gpu", "cpu" or "auto" (the node's GPUs, or its
        NeuronCores, or 1), which is the default.
    launcher : str, optional, default None
        "direct": the gang starts the ranks itself. "torchrun": torchrun's agent does. By default the agent is
        used only where an option in `torchrun_args` needs it.
    """

@overload
def torchrun(
    *,
    master_port: int | str | None = None,
    all_nodes_started_timeout: float | None = None,
    card: bool = False,
    end_timeout: float | None = None,
    lost_host_timeout: float | None = None,
    frozen_node_timeout: float | None = None,
    stall_timeout: float | None = None,
    nproc_per_node: int | str | None = None,
    launcher: str | None = None,
) -> Callable[[_Step], _Step]:
    """Runs the step on every node of a gang, and gives it `current.torch.run`, which starts PyTorch's ranks on them.

    Parameters
    ----------
    master_port : int | str, optional, default None
        Port on node 0 where the ranks meet. Where it is not given, the one that
        `@kubernetes(port=...)` names, else a free one is agreed upon.
    all_nodes_started_timeout : float, optional, default 600
        Seconds to wait for the last node to start.
    card : bool, default False
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    end_timeout : float, optional, default 30
        Seconds that what comes after the body may take on a node once the gang has failed.
    lost_host_timeout : float, optional, default 30
        Seconds in which a host that does not answer any more ends the gang.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node ends the gang that does not answer while its host does.
    stall_timeout : float, optional, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    nproc_per_node : int | str, optional, default None
        Ranks on each node: a number, "gpu", "cpu" or "auto" (the node's GPUs, or its
        NeuronCores, or 1), which is the default.
    launcher : str, optional, default None
        "direct": the gang starts the ranks itself. "torchrun": torchrun's agent does. By default the agent is
        used only where an option in `torchrun_args` needs it.
    """

"""What metaflow-gang adds to Metaflow, for type checkers and editors. Made by `make docs` of the code."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from . import huggingface_card_callback as huggingface_card_callback
from .metaflow_current import Current

class Node:
    """One machine, or one local process, of the gang.

    ``address`` is how the other nodes reach it, ``cpus`` and ``gpus`` what its task may use. Of a node that has not
    joined, and without which the gang goes on, nothing is known: both names are "", and both numbers 0.
    """
    index: int
    address: str
    hostname: str
    cpus: int
    gpus: int

class StackGroup:
    """Ranks and bodies that stand at the same place.

    Parameters
    ----------
    place : str
        "all_reduce at train.py:31": the line of the user's program, and what it has called there.
    inner : str
        The innermost frame, where that is not the user's own; else "".
    stack : str
        The innermost frames of one member, one in a line.
    ranks : tuple of int
    nodes : tuple of int
        Nodes on which the members run.
    others : tuple of str
        Members without a number: "the body of node 0".
    """
    place: str
    inner: str
    stack: str
    ranks: tuple[int, ...]
    nodes: tuple[int, ...]
    others: tuple[str, ...]

class Stacks:
    """The groups, the smallest first. As text it is what the log shows at a stall."""
    text: Any
    def __init__(self, groups: list[dict[str, Any]], text: str) -> None:
        ...
    def __len__(self) -> int:
        ...
    def __getitem__(self, index: Any) -> Any:
        ...
    def __iter__(self) -> Iterator[StackGroup]:
        ...

class Gang:
    """``current.gang``: this node's view of the gang while the step's body runs.

    Parameters
    ----------
    node_index : int
        This node; 0 is control.
    nodes : tuple of Node
        All nodes, by index.
    folder : str
        A private folder of this node and attempt, removed when the gang ends.

    Example
    -------
    >>> losses = current.gang.all_gather(loss)      # on every node
    """
    node_index: int
    nodes: tuple[Node, ...]
    folder: str
    def run(self, argv: str | Sequence[str | os.PathLike[str]], env: Mapping[str, str] | None = ..., cwd: str | os.PathLike[str] | None = ..., check: bool = ...) -> int:
        """Run a program on this node and wait for it; its output goes to this node's log as it comes.

        The program and everything it starts end with the gang. It is not a collective: any node may call it alone.

        Parameters
        ----------
        argv : str or sequence of str
            The program, or the program and its arguments. No shell is involved.
        env : mapping of str to str, optional
            Added to the task's environment.
        cwd : path, optional
            Working folder; the task's own by default.
        check : bool
            Whether a program that fails fails the gang. With False its exit code is returned.

        Returns
        -------
        int
            The exit code; negative for a signal.

        Raises
        ------
        ProcessFailed
            With ``check``, when it did not exit with 0.

        Example
        -------
        >>> current.gang.run(["./simulate", "--seed", str(current.gang.node_index)])
        """
    def launch(self, plan: Any) -> Any:
        """Run a launcher's plan on this node; how its processes ended, in the plan's order.

        Raises
        ------
        ProcessFailed
            When a process of this node has failed.
        PortTaken
            On every node, when a foreign program holds the plan's port.
        GangException
            The body has ended.
        """
    def run_together(self: Any, argv: str | Sequence[str | os.PathLike[str]], env: Mapping[str, str] | None = ..., cwd: str | os.PathLike[str] | None = ..., restarts: int = ..., restart_window: float = ..., restart_on: Any = ..., dry_run: bool = ...) -> None:
        """Run a program on every node, all at once, and wait until it has ended on all. Every node must call it.

        With ``restarts`` one that fails does not fail the gang: the program ends on all nodes, and is started again on
        all, with the number of restarts in GANG_RESTART (docs/restarts.md).

        Parameters
        ----------
        argv, env, cwd
            As in :meth:`run`; nodes may give different ones.
        restarts : int
            How often it is started again.
        restart_window : float
            Seconds in which restarts are counted; 0 is the whole call.
        restart_on : callable, optional
            Gets what has failed, and returns whether the program is started again.
        dry_run : bool
            Whether what would start is only shown, in the log of node 0 (docs/dry-runs.md). Nothing starts.

        Raises
        ------
        BadAttribute
            An argument that is not valid, or nodes that differ in restarts, restart_window or dry_run. Nothing was
            started.
        ProcessFailed
            It has failed on this node.
        GangException
            On every node: one was lost before its program had ended, in a gang that goes on without lost nodes.

        Example
        -------
        >>> current.gang.run_together(["python", "train.py"], restarts=3)
        """
    @property
    def num_nodes(self) -> int:
        """How many nodes the gang has."""
    @property
    def main_address(self) -> str:
        """Where the other nodes reach control."""
    @property
    def node(self) -> Node:
        """This node."""
    @property
    def is_control(self) -> bool:
        """Whether this is node 0."""
    @property
    def scratch(self) -> str:
        """A folder of this node for files that ranks need again after a restart, such as checkpoints.

        Ranks find it in the variable ``METAFLOW_GANG_SCRATCH``. It is below TMPDIR, or /tmp, and removed with the gang.
        """
    @property
    def traces(self) -> str:
        """A folder of this node for traces of torch's profiler: what ranks write there is stored when the body is over.

        Ranks find it in the variable ``METAFLOW_GANG_TRACES``. The card lists the traces, and the command
        ``metaflow-gang traces`` fetches them.
        """
    def another_address(self) -> str:
        """The address of some other node, to find out how it is reached; this node's own where it is alone."""
    def barrier(self) -> None:
        """Wait until every node has called it.

        The body is interrupted, and the step raises :class:`GangFailed`, when a node cannot come any more.
        """
    def all_gather(self, value: Any) -> list[Any]:
        """Give ``value`` to all nodes and get the values of all, by node index. Every node must call it.

        Parameters
        ----------
        value : any picklable
            Of any size; a large one travels encrypted, beside the control connections. Where the gang goes on without
            lost nodes, the value of a node that was lost before it gave one is None.

        Raises
        ------
        ValueTooStrange
            When ``value`` cannot be pickled.

        Example
        -------
        >>> ports = current.gang.all_gather(current.gang.free_port())
        """
    def gather(self, value: Any, root: int = ...) -> list[Any] | None:
        """Give ``value`` to node ``root`` alone, which gets the values of all, by node index; the others get None.

        Every node must call it. See :meth:`all_gather` for the values.

        Example
        -------
        >>> parts = current.gang.gather(part)      # a list on node 0, None elsewhere
        """
    def broadcast(self, value: Any, source: int = ...) -> Any:
        """Get the ``value`` that node ``source`` gave. Every node must call it; what the others give is not sent.

        Parameters
        ----------
        value : any picklable
            Only that of node ``source`` counts.
        source : int
            Index of the node whose value it is.

        Raises
        ------
        GangException
            On every node: ``source`` was lost before it gave one, in a gang that goes on without nodes that it loses.
        """
    def log(self, step: float, **values: Any) -> None:
        """Log numbers at a step, as ``loss=0.3``, for the card of the gang. Ranks call ``metaflow.gang_log`` instead.

        It takes microseconds and never raises.
        """
    def stacks(self) -> Stacks:
        """Where the ranks and bodies of all nodes stand now, also as text. Any node may call it, from any thread."""
    def free_port(self) -> int:
        """A port of this node that no other program has and no other gang of this user gets, until the gang ends."""
    def lease_port(self, exact: int | None = ...) -> int:
        """As :meth:`free_port`, or the very port ``exact``; raises :class:`BadAttribute` where it is not to be had."""
    def own_folder(self, path: str) -> None:
        """Make a folder outside of :attr:`folder`, as in shared memory, for this user alone; removed with the gang.

        Raises
        ------
        OSError
            It cannot be made, or is there and somebody else's, or has files in it that are not of this gang.
        """
    def own_files(self, pattern: str) -> None:
        """When the gang ends, remove files that killed programs have left.

        Only those of this user that are made after this call, and that no process uses then.

        Parameters
        ----------
        pattern : str
            Of paths, as in :mod:`glob`.
        """
    def start(self, process: Any, ready: str, timeout: float = ..., shown: bool = ...) -> None:
        """Start a program of this node that runs beside the body, until the gang ends; returns when it is ready.

        The exception of a failure has the end of its output. Once it is ready, its unexpected end fails the gang,
        whatever its exit code. It is not a collective: any node may call it alone.

        Parameters
        ----------
        process : Process
            What to run. It must stay in the foreground: what it leaves behind ends with it.
        ready : str
            Regular expression that says, in its output of either stream, that it is ready.
        timeout : float
            Seconds that it may take until then.
        shown : bool
            Whether its output goes to this node's log.

        Raises
        ------
        ProcessFailed
            When it ended before it was ready. The gang goes on if this is caught.
        GangException
            When it was not ready in time, and so was ended. The gang goes on if this is caught.
        BadAttribute
            When ``ready`` is not a regular expression, ``process`` no process, or ``timeout`` no time.

        Example
        -------
        >>> server = Process(("redis-server", "--port", str(port)), dict(os.environ), title="redis")
        >>> current.gang.start(server, ready="Ready to accept connections")
        """
    def on_preemption(self, save: Callable[[], object], seconds: float = ...) -> None:
        """Have ``save`` called before the gang ends because one of its nodes has to end: its task got SIGTERM, or its
        machine is taken away. The step then fails, on every node, and @retry starts it again.

        On every node that has registered one, the body is interrupted, what the gang runs there is ended, ``save`` is
        called in the step's own process, and the step fails when that is done on all nodes. The other members of
        ``current.gang`` that need the gang cannot be used any more then. It is not a collective.

        Parameters
        ----------
        save : callable without arguments
            What it raises is shown in the log. Several functions are called in the order in which they were registered.
        seconds : float
            How long the programs that the gang runs, ranks included, may take from SIGTERM to their end; then all
            ``save`` functions of a node have the same time once more. The largest that any node gave counts for all.

        Raises
        ------
        BadAttribute
            ``save`` cannot be called, or ``seconds`` is no time.

        Example
        -------
        >>> current.gang.on_preemption(lambda: torch.save(model.state_dict(), "/mnt/shared/last.pt"))
        """

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
    hosts: Any
    is_gpu: Any
    n_slots_per_host: Any
    worker_polling_freq: Any
    def __init__(self, gang: Gang, flow_datastore: Any, results_prefix: str, slots: Sequence[int], transport: str, missing: Sequence[list[str]], is_gpu: bool, worker_polling_freq: float | None = ..., policy: Any = ...) -> None:
        ...
    @staticmethod
    def for_single_node(flow: Any, use_gpu: bool = ..., n_slots: int = ...) -> Any:
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
    def run(self, deepspeed_args: Mapping[str, Any] | Sequence[Any] | None = ..., entrypoint: str | os.PathLike[str] | Callable[..., Any] | None = ..., entrypoint_args: Mapping[str, Any] | Sequence[Any] | None = ..., push_results_dir_to_cloud: bool = ..., local_output_dir: str | os.PathLike[str] | None = ..., cloud_output_dir: str | None = ..., dry_run: bool = ...) -> Any:
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

class Place:
    """This node's process among all, as JAX counts them.

    Parameters
    ----------
    coordinator_address : str
        "host:port" of process 0, which serves there.
    process_id : int
        This node's process: the index of the node.
    num_processes : int
        How many there are: one for each node.
    """
    coordinator_address: str
    process_id: int
    num_processes: int

class MPIExecutor:
    """``current.mpi`` in an ``@mpi`` step, whose body runs on node 0 while the other nodes wait.

    Parameters
    ----------
    hosts : tuple of str
        The other nodes' addresses, by node index.
    hostfile : str
        A hostfile with all nodes and their slots, in the form of the MPI that is used.
    slots : tuple of int
        How many ranks each node takes, by node index.
    transport : str
        How mpirun starts its daemons on other nodes: "ssh", "channel", or "" where all nodes are this machine.
    _devices : str
        CUDA_VISIBLE_DEVICES of the ranks, all nodes' shares together, where one machine's GPUs are shared out.
    """
    hosts: tuple[str, ...]
    hostfile: str
    slots: tuple[int, ...]
    transport: str
    def run(self, args: Any = ..., program: Any = ..., program_args: Any = ..., env: Mapping[str, str] | None = ..., stdin: Any = ..., dry_run: bool = ...) -> None:
        """Run ``program`` by mpirun, and wait for it.

        Parameters
        ----------
        args : str, list or dict, optional
            mpirun's own arguments, such as ``["-n", "4"]``. What they leave open is filled in: the hostfile, how to
            reach the other nodes, one rank for each slot.
        program : str, path or list
            What each rank runs: "python train.py", or ["./simulate", "--fast"]. Python runs in such a way that an
            exception on one rank ends all.
        program_args : str, list or dict, optional
            The program's arguments.
        env : dict, optional
            Variables for all ranks. What the body has changed in ``os.environ`` reaches all of them as well.
        stdin : path or bytes, optional
            A file of this node, or its content, that rank 0, which has to run here, gets as its stdin. Otherwise its
            stdin is empty, as the others' always is.
        dry_run : bool
            Whether what would start is only shown, in the log of this node (docs/dry-runs.md). Nothing starts.

        Raises
        ------
        BadAttribute
            An argument that is not valid. Nothing was started.
        MpiException
            A rank, or mpirun itself, has failed.
        GangFailed
            Another node was lost.

        Example
        -------
        ``current.mpi.run(args=["-n", "8"], program="python train.py", program_args={"epochs": 3})``
        """
    def exec(self, args: Any = ..., program: Any = ..., program_args: Any = ..., env: Mapping[str, str] | None = ..., stdin: Any = ..., dry_run: bool = ...) -> None:
        """As :meth:`run`, by mpiexec."""
    def cc(self, args: Any = ...) -> None:
        """Compile C by this MPI's compiler on this node; :meth:`broadcast_file` brings the program to the others.

        Parameters
        ----------
        args : str or list
            The compiler's arguments.

        Raises
        ------
        BadAttribute
            There are no arguments.
        ToolMissing
            This MPI has no compiler.
        MpiException
            It failed; the message has its output.

        Example
        -------
        ``current.mpi.cc(["-O2", "-o", "pi", "pi.c"])``
        """
    def broadcast_file(self, filename: str | os.PathLike[str], to: str | os.PathLike[str] | None = ...) -> None:
        """Copy a file of this node to all others, whole or not at all.

        Parameters
        ----------
        filename : path
            A relative one is looked for in the working folder.
        to : path, optional
            Where it goes on every node; the same path by default. A relative one is below each node's working folder.

        Raises
        ------
        BadAttribute
            There is no such file.
        BroadcastFailed
            A node could not be reached, or could not store it; the message names it. The others have it.

        Example
        -------
        ``current.mpi.broadcast_file("pi")``
        """

class RayCluster:
    """``current.ray`` in a ``@metaflow_ray`` step, whose body runs on the head node.

    Parameters
    ----------
    address : str
        What ``ray.init`` connects to; it is in RAY_ADDRESS, so ``ray.init()`` does it without.
    storage_path : str
        A folder of this attempt in the flow's datastore, for ``RunConfig(storage_path=...)`` of Ray Train and Tune.
    earlier_storage_paths : tuple of str
        Those of the attempts before this one, the latest first: a retry finds their checkpoints there.
    dashboard_url : str or None
        None where ``enable_dashboard`` is not set.

    Example
    -------
    >>> ray.init()                                  # joins this cluster
    >>> len(current.ray.nodes)
    4
    """
    address: str
    storage_path: str
    earlier_storage_paths: tuple[str, ...]
    dashboard_url: str | None
    @property
    def nodes(self) -> Any:
        """The cluster's nodes by index, as its head has them now; imports Ray."""
    def run(self, entrypoint: str | os.PathLike[str] | Callable[..., Any] | None = ..., entrypoint_args: Mapping[str, Any] | Sequence[Any] | None = ..., env: Mapping[str, str] | None = ..., dry_run: bool = ...) -> Any:
        """Run a script, or a function, on the head node, in a process of its own, and wait for it.

        ``ray.init()`` in it joins this cluster. What it prints is in this task's log.

        Parameters
        ----------
        entrypoint : str, path or callable
            A Python script, or a function at the top level of the flow file or of a module.
        entrypoint_args : dict or list, optional
            For a script, its arguments: {"epochs": 3} becomes ``--epochs 3``, a list passes as it is. For a function,
            its parameters by name or in order.
        env : dict, optional
            Variables for it besides the step's own.
        dry_run : bool
            Whether what would start on this node is only shown, in its log (docs/dry-runs.md). Nothing starts, and None
            is returned. The cluster is there already; METAFLOW_GANG_DRY_RUN=1 shows how it would be started.

        Returns
        -------
        any
            What the function returned; None for a script.

        Raises
        ------
        BadAttribute
            An argument that is not valid. Nothing was started.
        RayException
            The script failed. A function's own exception is raised as it is.
        GangFailed
            Another node was lost.

        Example
        -------
        ``current.ray.run("tune.py", {"samples": 20})``
        """

class TensorflowExecutor:
    """``current.tensorflow`` in a ``@tensorflow`` step.

    Attributes
    ----------
    config : dict
        The content of TF_CONFIG: the cluster, and this node's task in it.
    is_chief : bool
        Whether this node saves models and writes summaries: the chief, or worker 0 where there is none.
    task_type : str
        "worker", "chief", "ps" or "evaluator".
    worker_index : int
        This node's index among those of its type.
    is_users : bool
        Whether TF_CONFIG was set by the user, and so left alone.

    Example
    -------
    >>> strategy = tf.distribute.MultiWorkerMirroredStrategy()      # finds the nodes by TF_CONFIG
    >>> model.save(current.tensorflow.save_path("model.keras"))     # on every node
    """
    config: Any
    is_chief: Any
    is_users: Any
    task_type: Any
    worker_index: Any
    def __init__(self, gang: Gang, roles: Any, flow_datastore: Any, results_prefix: str, config: Mapping[str, Any], is_users: bool, policy: Any = ...) -> None:
        ...
    def save_path(self, path: str | os.PathLike[str]) -> str:
        """Where this node saves, as MultiWorkerMirroredStrategy wants all to save: the chief there, others elsewhere.

        Parameters
        ----------
        path : path
            Where the chief saves. Its folder is made.

        Returns
        -------
        str
            ``path`` on the chief; the same name in a folder that goes with the gang on every other node.

        Example
        -------
        ``model.save(current.tensorflow.save_path("model.keras"))``
        """
    def data_options(self, already_sharded: bool = ...) -> Any:
        """Options for a ``tf.data.Dataset`` that is given to the strategy.

        TensorFlow's own choice is to give each worker some of the files, which fails, or warns, where there are fewer
        files than workers. With these each worker reads all of the data and keeps its share of the elements.

        Parameters
        ----------
        already_sharded : bool
            Whether each node's dataset has other elements by itself: then nothing is left out.

        Returns
        -------
        tf.data.Options

        Example
        -------
        ``dataset = dataset.with_options(current.tensorflow.data_options())``
        """
    def run(self, entrypoint: str | os.PathLike[str] | Callable[..., Any] | None = ..., entrypoint_args: Mapping[str, Any] | Sequence[Any] | None = ..., env: Mapping[str, str] | None = ..., push_results_dir_to_cloud: bool = ..., local_output_dir: str | os.PathLike[str] | None = ..., cloud_output_dir: str | None = ..., dry_run: bool = ...) -> Any:
        """Run a script, or a function, on every node, in a process of its own. Every node has to call it.

        The process gets a TF_CONFIG of its own, and its memory is free again when it has ended.

        Parameters
        ----------
        entrypoint : str, path or callable
            A Python script, or a function at the top level of the flow file or of a module.
        entrypoint_args : dict or list, optional
            For a script, its arguments: {"epochs": 3} becomes ``--epochs 3``, a list passes as it is. For a function,
            its parameters by name or in order.
        env : dict, optional
            Variables for it besides the step's own.
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
            For a function: what the nodes' processes returned, by node; of all nodes on node 0, of the node itself on
            the others. For a script: where the results were pushed to, or None.

        Raises
        ------
        BadAttribute
            An argument that is not valid. Nothing was started.
        TensorflowException
            The process of this node failed. A function's own exception is raised as it is.
        GangFailed
            Another node failed first.

        Example
        -------
        ``current.tensorflow.run("train.py", {"epochs": 3})``
        """

class TorchrunExecutor:
    """``current.torch`` in a ``@torchrun`` step: runs a script, or a function, in every rank of the gang.

    ``torchrun_args`` is a dict of the gang's values for torchrun's options. It is for reading only.
    """
    torchrun_args: Any
    def __init__(self, gang: Gang, flow_datastore: Any, results_prefix: str, nproc_per_node: int | str | None = ..., master_port: int | None = ..., launcher: str | None = ..., policy: Any = ..., worlds: Any = ...) -> None:
        ...
    def run(self, torchrun_args: Mapping[str, Any] | Sequence[Any] | None = ..., entrypoint: str | os.PathLike[str] | Callable[..., Any] | None = ..., entrypoint_args: Mapping[str, Any] | Sequence[Any] | None = ..., nproc_per_node: int | str | None = ..., push_results_dir_to_cloud: bool = ..., local_output_dir: str | os.PathLike[str] | None = ..., cloud_output_dir: str | None = ..., dry_run: bool = ...) -> Any:
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

class TorchrunSingleNodeMultiGPU:
    """torchrun over this machine's GPUs in a step without ``num_parallel``.

    Example
    -------
    ``TorchrunSingleNodeMultiGPU().run(entrypoint="train.py", entrypoint_args={"epochs": 3})``
    """
    def run(self, torchrun_args: Mapping[str, Any] | Sequence[Any] | None = ..., entrypoint: str | os.PathLike[str] | Callable[..., Any] | None = ..., entrypoint_args: Mapping[str, Any] | Sequence[Any] | None = ..., nproc_per_node: int | str | None = ..., dry_run: bool = ...) -> list[Any] | None:
        """Run ``entrypoint`` in every rank of this machine, under torchrun's agent.

        Parameters
        ----------
        torchrun_args, entrypoint, entrypoint_args, nproc_per_node
            As in ``current.torch.run``.
        dry_run : bool
            Whether what would start is only shown (docs/dry-runs.md). Nothing starts, and None is returned.

        Returns
        -------
        list or None
            What the ranks returned, in their order, where ``entrypoint`` is a function.

        Raises
        ------
        BadAttribute
            An argument that is not valid. Nothing was started.
        TorchrunException
            A rank failed. A function's own exception is raised as it is.
        GuardDied
            The process that watches over the ranks was killed; they were ended.
        """

def gang_log(step: float, **values: Any) -> None:
    """Log numbers at a step of the training; the card of the gang draws a curve of each.

    It takes microseconds, never raises, and does nothing outside of a gang. A program without Python writes such a line
    itself into the file that ``METAFLOW_GANG_LOG_FILE`` names: ``{"rank": 3, "step": 10, "values": {"loss": 0.3}}``.

    Parameters
    ----------
    step : number
        Where on the axis.
    values : number
        By name. What has one element and is no number, such as a tensor or an array, is made one.

    Example
    -------
    >>> gang_log(step=step, loss=loss)
    """

def horovod_run(entrypoint: str | os.PathLike[str], entrypoint_args: Mapping[str, Any] | Sequence[Any] | None = ..., nproc_per_node: int | str | None = ..., env: Mapping[str, str] | None = ..., dry_run: bool = ...) -> None:
    """Run a script in every rank of a Horovod world over gloo, on all nodes at once. Every node has to call it.

    It belongs into a step whose body runs on all nodes, as @gang's does; ``hvd.init()`` in the script finds the others.
    Returns when all ranks of this node have ended well. Each call is a world of its own.

    Parameters
    ----------
    entrypoint : str or path
        A Python script.
    entrypoint_args : dict or list, optional
        Its arguments: {"epochs": 3} becomes ``--epochs 3``, a list passes as it is.
    nproc_per_node : int or str, optional
        Ranks on this node: a number, "gpu", "cpu" or "auto" (the node's GPUs, or 1), which is the default. Nodes may
        differ.
    env : mapping of str to str, optional
        Added to the task's environment for the ranks of this node, e.g. {"HOROVOD_GLOO_TIMEOUT_SECONDS": "120"}.
    dry_run : bool
        Whether what would start is only shown, in the log of node 0 (docs/dry-runs.md). Nothing starts.

    Raises
    ------
    BadAttribute
        An argument that is not valid, or a step without a gang or with a body on control alone. Nothing was started.
    ToolMissing
        This Python has no Horovod.
    ProcessFailed
        A rank of this node failed, or on control the server of the rendezvous.
    GangFailed
        Another node failed first.

    Example
    -------
    ``horovod_run("train.py", {"epochs": 3}, nproc_per_node=2)``
    """

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
        How often the ranks of one `current.deepspeed.run` are started again, on the same nodes, when one has failed.
    restart_window : float, optional, default 0
        Seconds in which restarts are counted; 0 is the whole call.
    restart_on : callable, optional, default None
        Gets what has failed, and returns whether the ranks are started again. By default failures that another try
        would meet again end the step at once: an import error, a wrong argument, an exception before any progress.
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
    card: bool | None = None,
    preflight: bool | str | None = None,
    end_timeout: float | None = None,
    lost_host_timeout: float | None = None,
    frozen_node_timeout: float | None = None,
    stall_timeout: float | None = None,
    restarts: int | None = 0,
    restart_window: float | None = 0,
    restart_on: callable | None = None,
    transport: str = "auto",
    worker_polling_freq: float | None = None,
    use_sudo: bool = False,
) -> Callable[[_Step], _Step]:
    """Runs the step on every node of a gang, and gives it `current.deepspeed.run`, which starts DeepSpeed's ranks on them.

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
        How often the ranks of one `current.deepspeed.run` are started again, on the same nodes, when one has failed.
    restart_window : float, optional, default 0
        Seconds in which restarts are counted; 0 is the whole call.
    restart_on : callable, optional, default None
        Gets what has failed, and returns whether the ranks are started again. By default failures that another try
        would meet again end the step at once: an import error, a wrong argument, an exception before any progress.
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
        Seconds within which a host that no longer answers ends the gang. An interruption of the network that is
        shorter than two thirds of it ends nothing.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node that does not answer while its host does ends the gang: a paused container.
    stall_timeout : float, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    card : bool, optional, default True
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    preflight : bool | str, optional, default True
        Whether the nodes compare software and machines before the body; "full" also tries the network between them.
    end_timeout : float, optional, default 30
        Seconds that the end of the step, after its body, may take on a node once the gang has failed.
    """

@overload
def gang(
    *,
    all_nodes_started_timeout: float | None = None,
    lost_host_timeout: float | None = None,
    frozen_node_timeout: float | None = None,
    stall_timeout: float = None,
    card: bool | None = None,
    preflight: bool | str | None = None,
    end_timeout: float | None = None,
) -> Callable[[_Step], _Step]:
    """Runs the step on all nodes of a cluster that lives as long as the step. Start it with
    `self.next(self.step_name, num_parallel=N)`.

    Parameters
    ----------
    all_nodes_started_timeout : float, optional, default 600
        Seconds in which all nodes must have joined, counted from this node's own start.
    lost_host_timeout : float, optional, default 30
        Seconds within which a host that no longer answers ends the gang. An interruption of the network that is
        shorter than two thirds of it ends nothing.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node that does not answer while its host does ends the gang: a paused container.
    stall_timeout : float, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    card : bool, optional, default True
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    preflight : bool | str, optional, default True
        Whether the nodes compare software and machines before the body; "full" also tries the network between them.
    end_timeout : float, optional, default 30
        Seconds that the end of the step, after its body, may take on a node once the gang has failed.
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
    """

@overload
def jax(
    *,
    all_nodes_started_timeout: float | None = None,
    card: bool | None = None,
    preflight: bool | str | None = None,
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
    """

@overload
def metaflow_ray(step: _Step, /) -> _Step:
    """Runs the step's body on the head node of a Ray cluster that has all nodes of the gang, and lives as long as the
    step. `ray.init()` in the body joins it.

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
    card: bool | None = None,
    preflight: bool | str | None = None,
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
    """

@overload
def mpi(
    *,
    all_nodes_started_timeout: float | None = None,
    card: bool | None = None,
    preflight: bool | str | None = None,
    end_timeout: float | None = None,
    lost_host_timeout: float | None = None,
    frozen_node_timeout: float | None = None,
    stall_timeout: float | None = None,
    restarts: int | None = 0,
    restart_window: float | None = 0,
    restart_on: callable | None = None,
    transport: str = "auto",
    worker_polling_freq: float | None = None,
) -> Callable[[_Step], _Step]:
    """Runs the step's body on node 0 of a gang, and gives it `current.mpi.run`, which is mpirun over all its nodes.

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
        Login node to submit from over SSH (`user@host`), where the run is elsewhere; or slurmrestd
        (`unix:///path/of/socket`, `http://host:port` with a token in SLURM_JWT).
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
        Login node to submit from over SSH (`user@host`), where the run is elsewhere; or slurmrestd
        (`unix:///path/of/socket`, `http://host:port` with a token in SLURM_JWT).
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
        How often the ranks of one `current.tensorflow.run` are started again, on the same nodes, when one has failed.
    restart_window : float, optional, default 0
        Seconds in which restarts are counted; 0 is the whole call.
    restart_on : callable, optional, default None
        Gets what has failed, and returns whether the ranks are started again. By default failures that another try
        would meet again end the step at once: an import error, a wrong argument, an exception before any progress.
    warm : bool, default True
        Whether, with `restarts`, interpreters that have imported the framework wait beside the ranks for a restart.
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
    card: bool | None = None,
    preflight: bool | str | None = None,
    end_timeout: float | None = None,
    lost_host_timeout: float | None = None,
    frozen_node_timeout: float | None = None,
    stall_timeout: float | None = None,
    restarts: int | None = 0,
    restart_window: float | None = 0,
    restart_on: callable | None = None,
    warm: bool = True,
    chief: bool = False,
    ps: int = 0,
    evaluator: bool = False,
) -> Callable[[_Step], _Step]:
    """Runs the step on every node of a gang, with a TF_CONFIG that lists all of them for TensorFlow.

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
        How often the ranks of one `current.tensorflow.run` are started again, on the same nodes, when one has failed.
    restart_window : float, optional, default 0
        Seconds in which restarts are counted; 0 is the whole call.
    restart_on : callable, optional, default None
        Gets what has failed, and returns whether the ranks are started again. By default failures that another try
        would meet again end the step at once: an import error, a wrong argument, an exception before any progress.
    warm : bool, default True
        Whether, with `restarts`, interpreters that have imported the framework wait beside the ranks for a restart.
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
    nproc_per_node : int | str, optional, default None
        Ranks on each node: a number, "gpu", "cpu" or "auto" (the node's GPUs, or its
        NeuronCores, or 1), which is the default.
    restarts : int, optional, default 0
        How often the ranks of one `current.torch.run` are started again, on the same nodes, when one has failed.
    restart_window : float, optional, default 0
        Seconds in which restarts are counted; 0 is the whole call.
    restart_on : callable, optional, default None
        Gets what has failed, and returns whether the ranks are started again. By default failures that another try
        would meet again end the step at once: an import error, a wrong argument, an exception before any progress.
    spares : int, optional, default 0
        How many of the nodes that `num_parallel` counts wait, to take the places of nodes that are lost. Each time
        costs a restart; without `restarts` there are as many of these as nodes can be lost.
    min_nodes : int, optional, default None
        How few nodes may have ranks once no spare node is left; by default no fewer than at first.
    warm : bool, default True
        Whether, with `restarts`, interpreters that have imported the framework wait beside the ranks for a restart.
    launcher : str, optional, default None
        "direct": the gang starts the ranks itself. "torchrun": torchrun's agent does. By default the agent is
        used only where an option in `torchrun_args` needs it.
    """

@overload
def torchrun(
    *,
    master_port: int | str | None = None,
    all_nodes_started_timeout: float | None = None,
    card: bool | None = None,
    preflight: bool | str | None = None,
    end_timeout: float | None = None,
    lost_host_timeout: float | None = None,
    frozen_node_timeout: float | None = None,
    stall_timeout: float | None = None,
    nproc_per_node: int | str | None = None,
    restarts: int | None = 0,
    restart_window: float | None = 0,
    restart_on: callable | None = None,
    spares: int | None = 0,
    min_nodes: int | None = None,
    warm: bool = True,
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
    nproc_per_node : int | str, optional, default None
        Ranks on each node: a number, "gpu", "cpu" or "auto" (the node's GPUs, or its
        NeuronCores, or 1), which is the default.
    restarts : int, optional, default 0
        How often the ranks of one `current.torch.run` are started again, on the same nodes, when one has failed.
    restart_window : float, optional, default 0
        Seconds in which restarts are counted; 0 is the whole call.
    restart_on : callable, optional, default None
        Gets what has failed, and returns whether the ranks are started again. By default failures that another try
        would meet again end the step at once: an import error, a wrong argument, an exception before any progress.
    spares : int, optional, default 0
        How many of the nodes that `num_parallel` counts wait, to take the places of nodes that are lost. Each time
        costs a restart; without `restarts` there are as many of these as nodes can be lost.
    min_nodes : int, optional, default None
        How few nodes may have ranks once no spare node is left; by default no fewer than at first.
    warm : bool, default True
        Whether, with `restarts`, interpreters that have imported the framework wait beside the ranks for a restart.
    launcher : str, optional, default None
        "direct": the gang starts the ranks itself. "torchrun": torchrun's agent does. By default the agent is
        used only where an option in `torchrun_args` needs it.
    """

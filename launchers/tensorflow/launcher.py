"""``current.tensorflow``: a node's task in TensorFlow's cluster, and programs in a process of their own."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...core.attributes import check_variables
from ...core.calls.local_process import explain, program
from ...core.calls.misplaced_arguments import suggesting
from ...core.calls.run import PortTry, Runs
from ...core.dry_run.call import show_instead
from ...core.exceptions import BadAttribute, ProcessFailed
from ...core.gang.gang import Gang
from ...core.gang.launch_plan import LaunchPlan
from ...core.gang.restarts import NO_RESTARTS, RestartPolicy
from .exceptions import TensorflowException
from .known_errors import PEER_LOST
from .roles import Roles, acts_as_chief, tf_config


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

    def __init__(
        self,
        gang: Gang,
        roles: Roles,
        flow_datastore: Any,
        results_prefix: str,
        config: Mapping[str, Any],
        is_users: bool,
        policy: RestartPolicy = NO_RESTARTS,
    ) -> None:
        self._gang = gang
        self._roles = roles
        self._runs = Runs(gang, TensorflowException, flow_datastore, results_prefix, explain_program, policy)
        self.config = dict(config)
        self.is_users = is_users
        task = self.config.get("task", {})
        self.task_type = str(task.get("type", "worker"))
        self.worker_index = int(task.get("index", 0))
        self.is_chief = acts_as_chief(self.config)

    @classmethod
    def form(
        cls, gang: Gang, roles: Roles, flow_datastore: Any, results_prefix: str, policy: RestartPolicy
    ) -> TensorflowExecutor:
        """Agree with the other nodes. Every node must call it.

        Raises
        ------
        BadAttribute
            The user's TF_CONFIG is no JSON object, or only some nodes have one.
        """
        own = os.environ.get("TF_CONFIG", "")
        have_own = gang.all_gather(bool(own))
        if not any(have_own):
            return cls(gang, roles, flow_datastore, results_prefix, agree(gang, roles), False, policy)
        if not all(have_own):
            raise BadAttribute(
                f"TF_CONFIG is set on node {have_own.index(True)} and not on node {have_own.index(False)}. Set it for "
                "all nodes, or for none, so that the gang does."
            )
        return cls(gang, roles, flow_datastore, results_prefix, read_tf_config(own), True, policy)

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
        target = os.fspath(path)
        if not self.is_chief:
            folder = tempfile.mkdtemp(prefix="thrown-away-", dir=self._gang.folder)
            return os.path.join(folder, os.path.basename(os.path.normpath(target)))
        os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
        return target

    def data_options(self, already_sharded: bool = False) -> Any:
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
        import tensorflow as tf

        policies = tf.data.experimental.AutoShardPolicy
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = policies.OFF if already_sharded else policies.DATA
        return options

    @suggesting("current.tensorflow.run", {"entrypoint_args": ()})
    def run(
        self,
        entrypoint: str | os.PathLike[str] | Callable[..., Any] | None = None,
        entrypoint_args: Mapping[str, Any] | Sequence[Any] | None = None,
        env: Mapping[str, str] | None = None,
        push_results_dir_to_cloud: bool = False,
        local_output_dir: str | os.PathLike[str] | None = None,
        cloud_output_dir: str | None = None,
        dry_run: bool = False,
    ) -> Any:
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
        check_variables("current.tensorflow.run", env)
        gang, runs = self._gang, self._runs
        results = runs.results(push_results_dir_to_cloud, local_output_dir, cloud_output_dir)

        def start(attempt: PortTry) -> None:
            config = self.config if self.is_users else agree(gang, self._roles)
            variables = {"TF_CONFIG": json.dumps(config), **attempt.variables, **(env or {})}
            process = program(what, gang, variables, attempt.key)
            warm = "tensorflow" if attempt.warm else ""
            again = attempt.restartable
            gang.launch(LaunchPlan((process,), peer_lost=PEER_LOST, key=attempt.key, restartable=again, warm=warm))

        with (
            show_instead(gang, dry_run, "current.tensorflow.run()") as planned,
            runs.entrypoint(entrypoint, entrypoint_args) as what,
        ):
            runs.launch(start, what, 0, is_ours=False)  # each node has a port of its own, in TF_CONFIG
            return None if planned else runs.result(what, [1] * gang.num_nodes, results)


def explain_program(failure: ProcessFailed, what: str, where: str) -> Exception:
    """The exception for the step; the process's title is what was running."""
    return explain(failure, "", where, TensorflowException, PEER_LOST)


def agree(gang: Gang, roles: Roles) -> dict[str, Any]:
    """TF_CONFIG of this node, with a port for each that nobody else has. Every node must call it."""
    own = gang.node.address
    address = f"[{own}]" if ":" in own else own
    return tf_config(roles, gang.all_gather(f"{address}:{gang.free_port()}"), gang.node_index)


def read_tf_config(text: str) -> dict[str, Any]:
    """The user's own. Raises BadAttribute where it is no JSON object."""
    try:
        config = json.loads(text)
    except ValueError as error:
        raise BadAttribute(f"TF_CONFIG, which you have set, is no JSON: {error}.") from None
    if not isinstance(config, dict):
        raise BadAttribute(f"TF_CONFIG, which you have set, is no JSON object: {text:.200}")
    return config

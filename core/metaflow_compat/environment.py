"""The environment variables by which Metaflow and its backends say which task, and which node of a gang, this is."""

from __future__ import annotations

import os
from collections.abc import Mapping

from .lookup import changed

NUM_NODES = "MF_PARALLEL_NUM_NODES"
NODE_INDEX = "MF_PARALLEL_NODE_INDEX"
MAIN_IP = "MF_PARALLEL_MAIN_IP"
CONTROL_TASK = "MF_PARALLEL_CONTROL_TASK_ID"
"""What ``current.parallel`` reads, on every node; each backend sets them for its tasks, and we do so for local ones."""

_RUNTIME = "METAFLOW_RUNTIME_ENVIRONMENT"
_REPLICA = "MF_WORKER_REPLICA_INDEX"
_BATCH_NODE = "AWS_BATCH_JOB_NODE_INDEX"


def is_local() -> bool:
    """Whether this task runs on the machine of its run, and not by a backend, each of which names itself."""
    return os.environ.get(_RUNTIME, "local") == "local"


def ends_with_a_task() -> bool:
    """Whether the cluster ends the tasks of all nodes when one fails: Kubernetes and Argo, as Metaflow uses them."""
    return os.environ.get(_RUNTIME) == "kubernetes"


def place(node: int, num_nodes: int, control_task: str) -> dict[str, str]:
    """The variables of node ``node`` of a local gang."""
    return {
        NUM_NODES: str(num_nodes),
        MAIN_IP: "127.0.0.1",
        CONTROL_TASK: control_task,
        NODE_INDEX: str(node),
    }


def assume_one_node() -> None:
    """Set what no one has set in a gang of one, as under Argo."""
    for name, value in {NUM_NODES: "1", NODE_INDEX: "0", MAIN_IP: "127.0.0.1"}.items():
        os.environ.setdefault(name, value)


def node_index(is_control: bool) -> int:
    """This node's index, also before the backend's own decorator has set Metaflow's variable for it.

    Raises
    ------
    MetaflowChanged
        No variable that we know says it.
    """
    environ = os.environ
    if NODE_INDEX in environ:
        return int(environ[NODE_INDEX])
    if is_control:
        return 0
    if _REPLICA in environ:
        return int(environ[_REPLICA]) + 1  # Kubernetes and Argo
    if _BATCH_NODE in environ:
        return int(environ[_BATCH_NODE])
    raise changed(f"the environment variable {NODE_INDEX}", "learn which node a task is")


def main_address() -> str:
    """Where node 0 is, for the others. Raises MetaflowChanged where no variable says it."""
    if MAIN_IP not in os.environ:
        raise changed(f"the environment variable {MAIN_IP}", "find node 0")
    return os.environ[MAIN_IP]


def control_task(own: str) -> str:
    """The id of control's task; a gang of one, of which ``own`` is the only task, may not have got it."""
    return os.environ.get(CONTROL_TASK) or own


def pathspec() -> list[str]:
    """Flow, run, step and task of this process, as the backends give them to its shell; empty where it is none."""
    return [piece for piece in os.environ.get("MF_PATHSPEC", "").split("/") if piece]


def attempt() -> int:
    """Which attempt of its task this process is, as the backends give it to its shell."""
    return int(os.environ.get("MF_ATTEMPT", 0))


def datastore() -> tuple[str, str]:
    """Kind and root of the flow's datastore, as the backends give them to a task's shell; "" where they do not."""
    return os.environ.get("MF_DATASTORE", ""), os.environ.get("MF_DATASTORE_ROOT", "")


def captured_streams() -> dict[str, str]:
    """The files in which a backend gathers what the task writes, by stream; empty where it gathers nothing."""
    paths = {stream: os.environ.get(f"MFLOG_{stream.upper()}", "") for stream in ("stdout", "stderr")}
    return paths if all(paths.values()) else {}


def declared_port(environ: Mapping[str, str]) -> str:
    """The port of ``@kubernetes(port=...)``, as text; Metaflow writes "None" where there is none."""
    return environ.get("MF_MASTER_PORT", "")

"""A workplace with a Kubernetes: where a flow runs ``--with kubernetes`` as it would in a cloud."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.remote import RemoteTask
from support.requirements import require_packages

from ..container import Container
from ..image import Image
from ..servers import S3_CREDENTIALS
from ..workplace import Workplace
from .api import KubernetesApi
from .cluster import Cluster
from .pods import Pod


class KubernetesPlace(Workplace):
    """Each of its machines holds one pod at a time.

    Parameters
    ----------
    machines : int
    env : mapping
        Variables of all pods.
    options
        Of :class:`Cluster`.
    """

    decorator = "kubernetes"
    packages = ("boto3", "kubernetes", "kubeflow_trainer_api", "moto")

    def __init__(
        self,
        stack: contextlib.ExitStack,
        folder: Path,
        image: Image,
        machines: int,
        metadata: str = "service",
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(stack, folder, machines, metadata)
        given = {**S3_CREDENTIALS, "OMP_NUM_THREADS": "1", **(env or {})}
        cluster = Cluster(self.hosts, self.machines, folder / "pods", image, given, **options)
        self.cluster = stack.enter_context(cluster)
        api = stack.enter_context(contextlib.closing(KubernetesApi(self.hosts[0], self.cluster)))
        config = folder / "kubeconfig"
        api.write_config(config)
        self.env |= {
            "KUBECONFIG": str(config),
            "METAFLOW_KUBERNETES_NAMESPACE": "default",
            "METAFLOW_KUBERNETES_CONTAINER_IMAGE": "image:latest",
            "METAFLOW_KUBERNETES_FETCH_EC2_METADATA": "",
            "METAFLOW_HOME": str(image.metaflow_home),
        }

    def container(self, index: int, attempt: int) -> Container | None:
        found = [pod.container for pod in self.pods(index) if pod.attempt == attempt]
        return found[-1] if found else None

    def pods(self, index: int) -> list[Pod]:
        """All pods that were a node of a gang, one for each attempt."""
        return self.cluster.find(_role(index))

    def lose(self, container: Container) -> None:
        """Its machine goes, all at once, and nobody is told."""
        (pod,) = (pod for pod in self.cluster.history if pod.container is container)
        self.cluster.lose(pod)

    def hold_back(self, index: int) -> None:
        """Find no machine for a node in the first attempt."""
        self.cluster.unschedulable = lambda pod: pod.role == _role(index) and pod.attempt == 0

    def task_logs(self, execution: RemoteTask, index: int, attempt: int = 0) -> str:
        """The log of a node's own task as the user reads it, after the run."""
        annotations = self.pods(0)[0].metadata["annotations"]
        control = f"{annotations['metaflow/step_name']}/{annotations['metaflow/control-task-id']}"
        return self.logs(execution, f"{control}-worker-{index - 1}" if index else control, attempt)

    def __str__(self) -> str:
        """All pods' logs, for an assertion's message."""
        pods = list(self.cluster.history)
        return "\n".join(f"{pod.name} {pod.phase}:\n{pod.container.output if pod.container else ''}" for pod in pods)


def _role(index: int) -> str:
    return f"worker-{index - 1}" if index else "control-0"


@pytest.fixture
def kubernetes(tmp_path: Path, image: Image) -> Iterator[Callable[..., KubernetesPlace]]:
    """Call it with what :class:`KubernetesPlace` takes from ``machines`` on. A module may say by a fixture ``image`` of
    its own what the pods run.
    """
    require_packages(*KubernetesPlace.packages)
    with contextlib.ExitStack() as stack:
        yield lambda machines, **options: KubernetesPlace(stack, tmp_path, image, machines, **options)

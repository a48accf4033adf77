"""A workplace with a Kubernetes: where a flow runs ``--with kubernetes`` as it would in a cloud."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.remote import RemoteTask

from ..image import Image
from ..servers import S3_CREDENTIALS
from ..workplace import RUN_S, Workplace
from .api import KubernetesApi
from .cluster import Cluster
from .pods import Pod

_STEP_S = 0.05  # A log that grows raises no event that could be waited for.


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
        self.cluster = Cluster(self.hosts, self.machines, folder / "pods", image, given, **options)
        stack.callback(self.cluster.close)
        api = stack.enter_context(contextlib.closing(KubernetesApi(self.hosts[0], self.cluster)))
        config = folder / "kubeconfig"
        api.write_config(config)
        self.env |= {
            "KUBECONFIG": str(config),
            "METAFLOW_KUBERNETES_NAMESPACE": "default",
            "METAFLOW_KUBERNETES_CONTAINER_IMAGE": "image:latest",
            "METAFLOW_KUBERNETES_FETCH_EC2_METADATA": "",
        }

    def pod(self, role: str, saying: str, run: RemoteTask, attempt: int = 0, timeout: float = RUN_S) -> Pod:
        """The pod "control-0", "worker-1", ... of an attempt, once ``saying`` is in its log; AssertionError where it
        does not come.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for pod in self.cluster.find(role):
                if pod.attempt == attempt and pod.container and saying in pod.container.output:
                    return pod
            if run.ended:
                break
            time.sleep(_STEP_S)
        logs = [
            f"{pod.name} {pod.phase}:\n{pod.container.output if pod.container else ''}" for pod in self.cluster.history
        ]
        raise AssertionError(f"{role} of attempt {attempt} did not say {saying!r}\n{run.story()}\n" + "\n".join(logs))


@pytest.fixture
def kubernetes(tmp_path: Path, image: Image) -> Iterator[Callable[..., KubernetesPlace]]:
    """Call it with what :class:`KubernetesPlace` takes from ``machines`` on. A module may say by a fixture ``image`` of
    its own what the pods run.
    """
    for package in ("boto3", "kubernetes", "kubeflow_trainer_api", "moto"):
        pytest.importorskip(package)
    with contextlib.ExitStack() as stack:
        yield lambda machines, **options: KubernetesPlace(stack, tmp_path, image, machines, **options)

"""A user's machine, a cluster and a bucket: where a flow runs ``--with kubernetes`` as it would in a cloud."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.flows import flow_environment
from support.hosts import Hosts
from support.leaks import MARK
from support.remote import RemoteTask

from .image import FOR_S3, Image
from .kubernetes.api import KubernetesApi
from .kubernetes.cluster import Cluster
from .kubernetes.pods import Pod
from .metadata import MetadataService
from .servers import S3_CREDENTIALS, s3_server

RUN_S = 240.0
"""For a run on two cores that other tests use, too: each of its tasks unpacks a code package and loads a framework."""

_BUCKET = "gang-tests"
_RESULT = "RESULT "
_STEP_S = 0.05  # A log that grows raises no event that could be waited for.


class Workplace:
    """Host 0 is the user's machine, on which the services listen, too; the others are the cluster's."""

    def __init__(self, hosts: Hosts, folder: Path, env: dict[str, str], cluster: Cluster) -> None:
        self.hosts, self.folder, self.env, self.cluster = hosts, folder, env, cluster

    def run(self, flow: str, *arguments: str, **files: str) -> RemoteTask:
        """Start ``flow.py run`` on the user's machine; ``files`` lie beside the flow, by their stem."""
        folder = self.folder / "user"
        folder.mkdir()
        (folder / "flow.py").write_text(textwrap.dedent(flow))
        for stem, text in files.items():
            (folder / f"{stem}.py").write_text(textwrap.dedent(text))
        argv = [sys.executable, str(folder / "flow.py"), "run", *arguments]
        return RemoteTask(self.hosts[0], argv, self.env, folder, self.folder / "run.log")

    def logs(self, run: RemoteTask, task: str, attempt: int = 0) -> str:
        """What ``flow.py logs`` shows of a task, "train/7-worker-0", of a run that has ended."""
        flow, found = self.folder / "user" / "flow.py", re.search(r"run-id (\d+)", run.output)
        assert found, run.story()
        argv = [sys.executable, str(flow), "logs", "--attempt", str(attempt), f"{found.group(1)}/{task}"]
        return self.hosts[0].run(argv, env=self.env, cwd=flow.parent).stdout

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


def result(run: RemoteTask) -> Any:
    """What the flow's last step printed as ``RESULT`` and JSON: how a test reads what a run made."""
    found = re.findall(_RESULT + "(.*)", run.output)
    assert found, run.story()
    return json.loads(found[-1])


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """PyTorch, the digits, and what Metaflow needs for S3."""
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    return Image(tmp_path_factory.mktemp("image"), "torch", "numpy", "scikit-learn", *FOR_S3)


@pytest.fixture
def kubernetes(tmp_path: Path, image: Image) -> Iterator[Callable[..., Workplace]]:
    """Call it with the number of machines that the cluster has, variables for all pods, and the options of
    :class:`Cluster`. A module may say by a fixture ``image`` of its own what the pods run.
    """
    for package in ("boto3", "kubernetes", "kubeflow_trainer_api", "moto"):
        pytest.importorskip(package)
    with contextlib.ExitStack() as stack:

        def make(
            machines: int, metadata: str = "service", env: Mapping[str, str] | None = None, **options: Any
        ) -> Workplace:
            hosts = stack.enter_context(Hosts(1 + machines))
            s3 = stack.enter_context(s3_server(hosts[0], _BUCKET))
            service = stack.enter_context(contextlib.closing(MetadataService(hosts[0])))
            pods = tmp_path / "pods"
            given = {**S3_CREDENTIALS, "OMP_NUM_THREADS": "1", **(env or {})}
            cluster = Cluster(hosts, range(1, 1 + machines), pods, image, given, **options)
            stack.callback(cluster.close)
            api = stack.enter_context(contextlib.closing(KubernetesApi(hosts[0], cluster)))
            api.write_config(tmp_path / "kubeconfig")
            changes: dict[str, str | None] = {
                **S3_CREDENTIALS,
                "KUBECONFIG": str(tmp_path / "kubeconfig"),
                "METAFLOW_DEFAULT_DATASTORE": "s3",
                "METAFLOW_DATASTORE_SYSROOT_LOCAL": None,
                "METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{_BUCKET}/flows",
                "METAFLOW_DATATOOLS_S3ROOT": f"s3://{_BUCKET}/data",
                "METAFLOW_S3_ENDPOINT_URL": s3,
                "METAFLOW_DEFAULT_METADATA": metadata,
                "METAFLOW_SERVICE_URL": service.url,
                "METAFLOW_KUBERNETES_NAMESPACE": "default",
                "METAFLOW_KUBERNETES_CONTAINER_IMAGE": "image:latest",
                "METAFLOW_KUBERNETES_FETCH_EC2_METADATA": "",
                "PYTHONUNBUFFERED": "1",
                MARK: os.environ.get(MARK),
            }
            return Workplace(hosts, tmp_path, flow_environment(changes), cluster)

        yield make

"""A user's machine, a bucket, a metadata service: what a flow needs besides the backend that it runs on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from support.flows import flow_environment
from support.hosts import Hosts
from support.leaks import MARK
from support.remote import RemoteTask
from support.requirements import require_packages

from .container import Container
from .image import FOR_S3, Image
from .metadata import MetadataService
from .servers import S3_CREDENTIALS, s3_server

RUN_S = 240.0
"""For a run on two cores that other tests use, too: each of its tasks unpacks a code package and loads a framework."""

_BUCKET = "gang-tests"
_RESULT = "RESULT "
_STEP_S = 0.05  # A log that grows raises no event that could be waited for.


class Workplace:
    """Host 0 is the user's machine, on which the services listen, too; the others, ``machines``, are the backend's.

    Attributes
    ----------
    hosts : Hosts
    folder : path
        Where all that the test makes lies.
    env : dict
        Of the user's shell. A backend adds how it is reached.
    decorator : str
        The backend's, without its "@".
    has_images : bool
        Whether it starts containers.
    """

    decorator = ""
    has_images = True

    def __init__(self, stack: contextlib.ExitStack, folder: Path, machines: int, metadata: str = "service") -> None:
        self.hosts, self.folder = stack.enter_context(Hosts(1 + machines)), folder
        self.machines = range(1, 1 + machines)
        s3 = stack.enter_context(s3_server(self.hosts[0], _BUCKET))
        service = stack.enter_context(contextlib.closing(MetadataService(self.hosts[0])))
        self.env = flow_environment(
            {
                **S3_CREDENTIALS,
                "METAFLOW_DEFAULT_DATASTORE": "s3",
                "METAFLOW_DATASTORE_SYSROOT_LOCAL": None,
                "METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{_BUCKET}/flows",
                "METAFLOW_DATATOOLS_S3ROOT": f"s3://{_BUCKET}/data",
                "METAFLOW_S3_ENDPOINT_URL": s3,
                "METAFLOW_DEFAULT_METADATA": metadata,
                "METAFLOW_SERVICE_URL": service.url,
                "PYTHONUNBUFFERED": "1",
                MARK: os.environ.get(MARK),
            }
        )

    def run(self, flow: str, *arguments: str, **files: str) -> RemoteTask:
        """Start ``flow.py run`` on the user's machine; ``files`` lie beside the flow, by their stem."""
        folder = self.folder / "user"
        folder.mkdir(exist_ok=True)
        (folder / "flow.py").write_text(textwrap.dedent(flow))
        for stem, text in files.items():
            (folder / f"{stem}.py").write_text(textwrap.dedent(text))
        argv = [sys.executable, str(folder / "flow.py"), "run", *arguments]
        return RemoteTask(self.hosts[0], argv, self.env, folder, self.folder / "run.log")

    def start(self, flow: str, **files: str) -> RemoteTask:
        """Run a flow: where it says ``@BACKEND`` of a step, that step on the backend, else all of it."""
        arguments = () if "@BACKEND" in flow else ("--with", self.decorator)
        return self.run(flow.replace("BACKEND", self.decorator), *arguments, **files)

    def container(self, index: int, attempt: int) -> Container | None:
        """That of a node of the newest gang; None where it has not been started."""
        raise NotImplementedError

    def node(self, index: int, saying: str, execution: Any, attempt: int = 0, timeout: float = RUN_S) -> Container:
        """A node's container once ``saying`` is in its log; AssertionError where it does not come."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            container = self.container(index, attempt)
            if container and saying in container.output:
                return container
            if execution.ended:
                break
            time.sleep(_STEP_S)
        raise AssertionError(f"node {index} of attempt {attempt} did not say {saying!r}\n{execution.dump()}\n{self}")

    def logs(self, run: RemoteTask, task: str, attempt: int = 0) -> str:
        """What ``flow.py logs`` shows of a task, "train/7-worker-0", of a run that has ended."""
        flow, found = self.folder / "user" / "flow.py", re.search(r"run-id (\d+)", run.output)
        assert found, run.dump()
        argv = [sys.executable, str(flow), "logs", "--attempt", str(attempt), f"{found.group(1)}/{task}"]
        return self.hosts[0].run(argv, env=self.env, cwd=flow.parent).stdout


def result(run: RemoteTask) -> Any:
    """What the flow's last step printed as ``RESULT`` and JSON: how a test reads what a run made."""
    found = re.findall(_RESULT + "(.*)", run.output)
    assert found, run.dump()
    return json.loads(found[-1])


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """PyTorch, the digits, and what Metaflow needs for S3."""
    require_packages("torch", "sklearn")
    return Image(tmp_path_factory.mktemp("image"), "torch", "numpy", "scikit-learn", *FOR_S3, live_logs=True)


@pytest.fixture(scope="session", name="image")
def bare_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Without a framework, for a module in which nothing trains."""
    require_packages("boto3")
    return Image(tmp_path_factory.mktemp("image"), *FOR_S3)

"""A workplace with AWS Batch: where a flow runs ``--with batch`` as it would in a cloud."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.remote import RemoteTask

from ..container import Container
from ..image import Image
from ..servers import S3_CREDENTIALS
from ..workplace import Workplace
from .api import BatchApi
from .jobs import Job
from .service import QUEUE, BatchService


class BatchPlace(Workplace):
    """Each of its machines holds one node at a time.

    Parameters
    ----------
    machines : int
    env : mapping
        Variables of all containers.
    options
        Of :class:`BatchService`.
    """

    decorator = "batch"
    packages = ("boto3", "moto")

    def __init__(
        self,
        stack: contextlib.ExitStack,
        folder: Path,
        image: Image,
        machines: int,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(stack, folder, machines)
        given = {**S3_CREDENTIALS, "OMP_NUM_THREADS": "1", **(env or {})}
        service = BatchService(self.hosts, self.machines, folder / "jobs", image, given, **options)
        self.service = stack.enter_context(service)
        api = stack.enter_context(contextlib.closing(BatchApi(self.hosts[0], self.service)))
        self.env |= {
            "AWS_ENDPOINT_URL_BATCH": api.url,
            "METAFLOW_HOME": str(image.metaflow_home),
            "METAFLOW_BATCH_JOB_QUEUE": QUEUE,
            "METAFLOW_BATCH_CONTAINER_IMAGE": "image:latest",
            "METAFLOW_ECS_S3_ACCESS_IAM_ROLE": "arn:aws:iam::123456789012:role/gang",
        }

    def gang(self, attempt: int = 0) -> Job | None:
        """The newest multi-node job of an attempt."""
        with self.service.lock:
            found = [job for job in self.service.jobs.values() if job.multi and job.attempt == attempt]
        return found[-1] if found else None

    def container(self, index: int, attempt: int) -> Container | None:
        job = self.gang(attempt)
        return job.nodes[index].container if job else None

    def lose(self, container: Container) -> None:
        """The machine goes, all at once; the service takes a while to notice."""
        self.service.lose(container.host)

    def hold_back(self, index: int) -> None:
        """This node's container is never started in the first attempt."""
        self.service.held = lambda job, node: job.multi and job.attempt == 0 and node.index == index

    def task_logs(self, execution: RemoteTask, index: int, attempt: int = 0) -> str:
        """What the user reads as the log of a node's own task, once the run has ended."""
        job = self.gang(attempt)
        assert job is not None, f"there is no attempt {attempt}: {execution.dump()}"
        task = job.parameters["metaflow.task_id"] + (f"-node-{index}" if index else "")
        return self.logs(execution, f"{job.parameters['metaflow.step_name']}/{task}", attempt)

    def __str__(self) -> str:
        """All containers' logs, for an assertion's message."""
        lines = []
        for job in self.service.jobs.values():
            lines.append(f"{job.request['jobName']} {job.status} {job.reason}")
            lines += [f"node {one.index} {one.status}:\n{one.container.output}" for one in job.nodes if one.container]
        return "\n".join(lines)

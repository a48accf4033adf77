"""The REST calls of AWS Batch that Metaflow's client makes, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from support.hosts import Host

from ..servers import JsonServer, Refused
from . import schema
from .jobs import ACCOUNT, REGION, Job
from .service import COMPUTE, QUEUE, BatchService

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_CONTAINER = "/container/"

_MIN_TIMEOUT_S = 60


def _refusal(message: str) -> Refused:
    return Refused(400, {"code": "ClientException", "message": message})


def _arn(kind: str, name: str) -> str:
    return f"arn:aws:batch:{REGION}:{ACCOUNT}:{kind}/{name}"


class BatchApi(JsonServer):
    """Serves a :class:`BatchService` on ``host``; each body, and each answer, is checked against the public model."""

    def __init__(self, host: Host, service: BatchService) -> None:
        self._service = service
        self._calls: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "DescribeJobQueues": self._queues,
            "DescribeComputeEnvironments": self._compute_environments,
            "DescribeJobDefinitions": self._definitions,
            "RegisterJobDefinition": self._register,
            "SubmitJob": self._submit,
            "DescribeJobs": self._describe,
            "ListJobs": self._list,
            "TerminateJob": self._terminate,
        }
        super().__init__(host)
        service.env["ECS_CONTAINER_METADATA_URI_V4"] = f"{self.url}{_CONTAINER}v4"

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        if method == "GET" and path.startswith(_CONTAINER):  # the agent's, which tells a container of its logs
            options = {"awslogs-group": "/aws/batch/job", "awslogs-region": REGION, "awslogs-stream": "gang"}
            return 200, {"LogDriver": "awslogs", "LogOptions": options}
        operation = schema.operations().get(path)
        if method != "POST" or operation is None or operation.name not in self._calls:
            self.problems.append(f"{method} {path} is not known")
            raise _refusal(f"{method} {path} is not known")
        body = body or {}
        problems = schema.check(operation.input_shape, body)
        if problems:
            self.problems += [f"{operation.name}: {problem}" for problem in problems]
            raise _refusal("; ".join(problems))
        with self._service.lock:
            found = self._calls[operation.name](body)
        wrong = schema.check(operation.output_shape, found)
        assert not wrong, f"{operation.name} answers what its model does not have: {wrong}"
        return 200, found

    # -- what there is -------------------------------------------------------------------------------------------------

    def _queues(self, body: dict[str, Any]) -> dict[str, Any]:
        order = [{"order": 1, "computeEnvironment": COMPUTE}]
        queue = {
            "jobQueueName": QUEUE,
            "jobQueueArn": _arn("job-queue", QUEUE),
            "state": "ENABLED",
            "status": "VALID",
            "priority": 1,
            "computeEnvironmentOrder": order,
        }
        return {"jobQueues": [queue] if QUEUE in body.get("jobQueues", [QUEUE]) else []}

    def _compute_environments(self, body: dict[str, Any]) -> dict[str, Any]:
        resources = {"type": "EC2", "maxvCpus": 64, "subnets": []}
        names = {"computeEnvironmentName": COMPUTE, "computeEnvironmentArn": _arn("compute-environment", COMPUTE)}
        found = {**names, "type": "MANAGED", "state": "ENABLED", "status": "VALID", "computeResources": resources}
        return {"computeEnvironments": [found] if COMPUTE in body.get("computeEnvironments", [COMPUTE]) else []}

    def _definitions(self, body: dict[str, Any]) -> dict[str, Any]:
        wanted = body.get("jobDefinitionName")
        found = [one for one in self._service.definitions.values() if wanted in (None, one["jobDefinitionName"])]
        return {"jobDefinitions": found}

    def _register(self, body: dict[str, Any]) -> dict[str, Any]:
        name = body["jobDefinitionName"]
        own, other = ("nodeProperties", "containerProperties")[:: 1 if body["type"] == "multinode" else -1]
        if not _NAME.fullmatch(name) or own not in body or other in body:
            raise self._wrong(f"a job definition {name!r} of type {body['type']} with {sorted(body)}")
        arn, revision = _arn("job-definition", f"{name}:1"), {"revision": 1}
        self._service.definitions[arn] = {**body, "jobDefinitionArn": arn, "status": "ACTIVE", **revision}
        return {"jobDefinitionName": name, "jobDefinitionArn": arn, **revision}

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def _submit(self, body: dict[str, Any]) -> dict[str, Any]:
        definition = self._service.definitions.get(body["jobDefinition"])
        if definition is None or body["jobQueue"] != QUEUE:
            raise _refusal(f"{body['jobQueue']} or {body['jobDefinition']} is not known")
        other = "containerOverrides" if definition["type"] == "multinode" else "nodeOverrides"
        unknown = {other, "arrayProperties", "dependsOn", "retryStrategy"} & body.keys()
        limit = body.get("timeout", {}).get("attemptDurationSeconds", _MIN_TIMEOUT_S)
        if not _NAME.fullmatch(body["jobName"]) or unknown or limit < _MIN_TIMEOUT_S:
            raise self._wrong(f"job {body['jobName']!r} with {sorted(unknown)} and a timeout of {limit} s")
        job = self._service.submit(body)
        for node in job.nodes:
            reserved = [one["name"] for one in node.properties["environment"] if one["name"].startswith("AWS_BATCH")]
            if reserved:
                raise self._wrong(f"variables that are Batch's: {reserved}")
        return {"jobId": job.id, "jobName": body["jobName"], "jobArn": _arn("job", job.id)}

    def _describe(self, body: dict[str, Any]) -> dict[str, Any]:
        found = []
        for name in body["jobs"]:
            job_id, _, index = name.partition("#")
            job = self._service.jobs.get(job_id)
            if job is not None and (not index or int(index) < len(job.nodes)):
                found.append(job.shown(int(index) if index else None))
        return {"jobs": found}

    def _list(self, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("jobQueue") != QUEUE:
            raise self._wrong(f"a list of jobs by {sorted(body)}")
        wanted = body.get("jobStatus", "RUNNING")
        found = [job.summary() for job in self._service.jobs.values() if job.status == wanted]
        return {"jobSummaryList": found}

    def _terminate(self, body: dict[str, Any]) -> dict[str, Any]:
        job: Job | None = self._service.jobs.get(body["jobId"])
        if job is not None:  # the service says nothing of one that it does not know
            self._service.terminate(job, body["reason"])
        return {}

    def _wrong(self, message: str) -> Refused:
        """What the service itself would refuse, or what is not known here: Metaflow has no business with it."""
        self.problems.append(message)
        return _refusal(message)

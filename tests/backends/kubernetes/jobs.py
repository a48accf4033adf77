"""Jobs and JobSets: their pods, and the status that their controllers make of what became of the pods."""

from __future__ import annotations

import uuid
from typing import Any

from .pods import Pod, now

_JOBSET = "jobset.sigs.k8s.io"


def _metadata(sent: dict[str, Any], namespace: str, name: str) -> dict[str, Any]:
    kept = {key: value for key, value in sent.items() if value is not None and key != "generateName"}
    created = {"namespace": namespace, "name": name, "uid": str(uuid.uuid4()), "creationTimestamp": now()}
    return {"labels": {}, "annotations": {}, **kept, **created}


class Job:
    """One pod, run once: Metaflow's Jobs have no more, and a backoffLimit of 0."""

    def __init__(
        self,
        namespace: str,
        name: str,
        body: dict[str, Any],
        labels: dict[str, str] | None = None,
        hostname: str = "",
    ) -> None:
        self.spec: dict[str, Any] = body["spec"]
        assert self.spec.get("backoffLimit") == 0, "only a backoffLimit of 0 is known here"
        self.metadata = _metadata(
            {**(body.get("metadata") or {}), **({"labels": labels} if labels else {})}, namespace, name
        )
        own = labels or {}
        self.pod: Pod | None = Pod(namespace, name, self.spec["template"], own, own, hostname)
        self._ended = ""

    @property
    def name(self) -> str:
        return str(self.metadata["name"])

    def reconcile(self) -> None:
        """Write down how the pod ended. One that was deleted before its end has failed, too."""
        if not self._ended and self.pod and not self.pod.active:
            self._ended = "failed" if self.pod.exit_code else "succeeded"

    @property
    def status(self) -> dict[str, Any]:
        if not self._ended:
            return {"active": 1}
        condition = {"type": "Failed" if self._ended == "failed" else "Complete", "status": "True"}
        return {self._ended: 1, "conditions": [condition]}

    @property
    def ready(self) -> bool:
        return self.pod is not None and self.pod.phase == "Running"

    def stop(self) -> None:
        """Delete the pod where it is active: then none is shown any more."""
        if self.pod and self.pod.active:
            self.pod.delete()
            self.reconcile()
            self.pod = None

    def shown(self) -> dict[str, Any]:
        """The Job as the API server shows it."""
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": self.metadata,
            "spec": self.spec,
            "status": self.status,
        }


class JobSet:
    """Jobs that start in order and fail as one: without a failurePolicy the first failed Job is the JobSet's end."""

    def __init__(self, namespace: str, name: str, body: dict[str, Any]) -> None:
        self.body = body
        self.spec: dict[str, Any] = body["spec"]
        assert not self.spec.get("failurePolicy"), "a failurePolicy is not known here: Metaflow has none"
        assert not self.spec.get("successPolicy"), "a successPolicy is not known here: Metaflow has none"
        self.metadata = _metadata(body.get("metadata") or {}, namespace, name)
        self._jobs: dict[str, list[Job]] = {}
        self._condition = ""

    @property
    def name(self) -> str:
        return str(self.metadata["name"])

    @property
    def jobs(self) -> list[Job]:
        return [job for jobs in self._jobs.values() for job in jobs]

    def reconcile(self) -> list[Job]:
        """Bring the JobSet on; the Jobs that were made new."""
        for job in self.jobs:
            job.reconcile()
        if self._condition:
            return []
        if any("failed" in job.status for job in self.jobs):
            self._condition = "Failed"
            self.stop()
            return []
        if len(self.jobs) == sum(self._replicas(one) for one in self.spec["replicatedJobs"]):
            if all("succeeded" in job.status for job in self.jobs):
                self._condition = "Completed"
            return []
        return self._create_next()

    def _create_next(self) -> list[Job]:
        """The jobs that may begin now: InOrder, each kind waits until those before it are ready or done."""
        in_order = (self.spec.get("startupPolicy") or {}).get("startupPolicyOrder") == "InOrder"
        made = []
        for replicated in self.spec["replicatedJobs"]:
            kind = replicated["name"]
            if kind not in self._jobs:
                self._jobs[kind] = [self._create(replicated, index) for index in range(self._replicas(replicated))]
                made += self._jobs[kind]
            if in_order and not all(job.ready or "succeeded" in job.status for job in self._jobs[kind]):
                break
        return made

    def _create(self, replicated: dict[str, Any], index: int) -> Job:
        name = f"{self.name}-{replicated['name']}-{index}"
        labels = {
            f"{_JOBSET}/jobset-name": self.name,
            f"{_JOBSET}/replicatedjob-name": replicated["name"],
            f"{_JOBSET}/replicatedjob-replicas": str(self._replicas(replicated)),
            f"{_JOBSET}/job-index": str(index),
            f"{_JOBSET}/restart-attempt": "0",
        }
        return Job(self.metadata["namespace"], name, replicated["template"], labels, f"{name}-0")

    def _replicas(self, replicated: dict[str, Any]) -> int:
        return int(replicated.get("replicas", 1))

    def stop(self) -> None:
        """Delete all jobs that are active, and so their pods."""
        for job in self.jobs:
            if "active" in job.status:
                job.stop()

    def shown(self) -> dict[str, Any]:
        """The JobSet as the API server shows it."""
        replicated = []
        for one in self.spec["replicatedJobs"]:
            jobs = self._jobs.get(one["name"], [])
            counts = {key: sum(key in job.status for job in jobs) for key in ("active", "succeeded", "failed")}
            replicated.append({"name": one["name"], "ready": sum(job.ready for job in jobs), "suspended": 0, **counts})
        status: dict[str, Any] = {"replicatedJobsStatus": replicated}
        if self._condition:
            status["conditions"] = [{"type": self._condition, "status": "True"}]
            status["terminalState"] = self._condition
        return {**self.body, "metadata": self.metadata, "status": status}

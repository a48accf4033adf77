"""The cluster: schedules pods on hosts, keeps the name service, and brings Jobs and JobSets on until told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from support.hosts import Hosts

from ..container import KILLED, Container
from ..control import Control
from ..image import Image
from .jobs import Job, JobSet
from .pods import Pod


class Cluster(Control):
    """Controllers and a scheduler. What is told here besides:

    Parameters
    ----------
    names_after : float
        Seconds from a pod's start until other pods can look up its name.
    notices_after : float
        Seconds from a container's failure until the controllers act on it. On real clusters it takes the kubelet up to
        1 s to see it and the Job controller up to 1 s to gather what it sees. A success is acted on at once.
    """

    def __init__(
        self,
        hosts: Hosts,
        indices: Sequence[int],
        folder: Path,
        image: Image,
        env: Mapping[str, str],
        apart: float = 0.0,
        names_after: float = 0.0,
        notices_after: float = 2.0,
    ) -> None:
        super().__init__(hosts, indices, folder, image, env, apart)
        self.names_after, self.notices_after = names_after, notices_after
        self.unschedulable: Callable[[Pod], bool] = lambda pod: False
        self.jobs: dict[str, Job] = {}
        self.jobsets: dict[str, JobSet] = {}
        self.history: list[Pod] = []
        self._running: list[Pod] = []

    # -- what the API server asks --------------------------------------------------------------------------------------

    def create(self, kind: str, namespace: str, name: str, body: dict[str, Any]) -> Job | JobSet:
        with self.lock:
            if kind == "jobsets":
                self.jobsets[name] = JobSet(namespace, name, body)
                return self.jobsets[name]
            self.jobs[name] = Job(namespace, name, body)
            self._adopt(self.jobs[name])
            return self.jobs[name]

    def run(self, pod: Pod) -> None:
        """Take in a pod that belongs to no Job."""
        with self.lock:
            self.history.append(pod)

    def pods(self) -> list[Pod]:
        """Those that are there: what was deleted is not."""
        with self.lock:
            jobs = [*self.jobs.values(), *(job for jobset in self.jobsets.values() for job in jobset.jobs)]
            return [job.pod for job in jobs if job.pod]

    # -- what befalls pods ---------------------------------------------------------------------------------------------

    def find(self, role: str) -> list[Pod]:
        """All pods that were "control-0", "worker-1", ... of a JobSet, the newest last."""
        with self.lock:
            return [pod for pod in self.history if pod.role == role]

    def lose(self, pod: Pod) -> None:
        """The pod's machine goes, all at once. Kubernetes takes minutes to notice and shows the pod as running."""
        with self.lock:
            assert pod.host is not None
            pod.lost = True
            self.kill_machine(pod.host)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def containers(self) -> Iterator[Container]:
        for pod in self.history:
            if pod.container and not pod.lost:
                yield pod.container

    def look(self) -> None:
        self._running = [pod for pod in self._running if self._watch(pod)]
        for job in self.jobs.values():
            job.reconcile()
        for jobset in self.jobsets.values():
            for job in jobset.reconcile():
                self._adopt(job)
        for pod in self.history:
            if pod.active and pod.container is None:
                self._schedule(pod)
        self._publish_names()

    def _adopt(self, job: Job) -> None:
        assert job.pod is not None
        self.history.append(job.pod)

    def _watch(self, pod: Pod) -> bool:
        """Whether a pod's container runs on; its end is written down, and gives its host back."""
        assert pod.container is not None and pod.host is not None
        if pod.lost:
            return False
        if not pod.container.running():
            pod.ended = pod.ended or time.monotonic()
            code = pod.container.wait()
            if pod.active and code and time.monotonic() - pod.ended < self.notices_after:
                return True
            pod.end(code, "Error" if code else "Completed")
            self.free.append(pod.host)
            return False
        limit = pod.spec.get("activeDeadlineSeconds")
        if limit and pod.active and time.monotonic() - pod.started > limit:
            pod.end(KILLED, "DeadlineExceeded")
            pod.container.kill()
        return True

    def _schedule(self, pod: Pod) -> None:
        if not self.free or self.unschedulable(pod) or not self.may_start():
            return
        pod.start(self.free[0], self.folder, self.image, self.env)
        if pod.container:
            self.free.pop(0)
            self._running.append(pod)

    def _publish_names(self) -> None:
        """Tell every pod the addresses of those that the headless services have learnt of by now."""
        there = [pod for pod in self.pods() if pod.container and pod.host and pod.active]
        known: dict[str, dict[str, str]] = {}
        for pod in there:
            if pod.domain and time.monotonic() - pod.started >= self.names_after:
                assert pod.host is not None
                known.setdefault(pod.spec["subdomain"], {})[pod.domain] = pod.host.address
        for pod in there:
            assert pod.container is not None
            pod.container.know(known.get(pod.spec.get("subdomain") or "", {}))

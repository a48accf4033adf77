"""The cluster: schedules pods on hosts, keeps the name service, and brings Jobs and JobSets on until told to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from support.hosts import Hosts

from ..container import KILLED
from ..image import Image
from .jobs import Job, JobSet
from .pods import Pod

_STEP_S = 0.05  # A controller looks and acts, again and again; that is how Kubernetes' own work, too.


class Cluster:
    """A control loop over hosts, each of which holds one pod at a time.

    Parameters
    ----------
    hosts, indices : Hosts, sequence of int
        The machines, and which of them are the cluster's.
    folder : path
        For the containers' logs.
    image : Image
        What every pod runs, whatever its manifest calls it.
    env : mapping
        Variables of every pod, as an image or the cluster's operators would set.
    names_after : float
        Seconds from a pod's start until other pods can look up its name.
    apart : float
        Seconds between the starts of two pods.
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
        names_after: float = 0.0,
        apart: float = 0.0,
        notices_after: float = 2.0,
    ) -> None:
        self._hosts, self._folder, self._image, self._env = hosts, folder, image, dict(env)
        self._free = [hosts[index] for index in indices]
        self.names_after, self.apart, self.notices_after = names_after, apart, notices_after
        self.unschedulable: Callable[[Pod], bool] = lambda pod: False
        self.jobs: dict[str, Job] = {}
        self.jobsets: dict[str, JobSet] = {}
        self.history: list[Pod] = []
        self.problems: list[str] = []
        self.lock = threading.RLock()
        self._running: list[Pod] = []
        self._last_start = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="cluster")
        self._thread.start()

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
            self._hosts.cut(pod.host.index)  # first, or its kernel would still close its connections
            self._hosts.kill(pod.host.index)

    def close(self) -> None:
        """End all pods; AssertionError where the cluster met what it does not know."""
        self._stop.set()
        self._thread.join()
        for pod in self.history:
            if pod.container and not pod.lost:
                pod.container.kill()
                pod.container.wait(10)
        assert not self.problems, "the cluster failed:\n" + "\n".join(self.problems)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._stop.wait(_STEP_S):
            try:
                with self.lock:
                    self._look()
            except Exception as error:
                self.problems.append(repr(error))
                raise

    def _look(self) -> None:
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
            self._free.append(pod.host)
            return False
        limit = pod.spec.get("activeDeadlineSeconds")
        if limit and pod.active and time.monotonic() - pod.started > limit:
            pod.end(KILLED, "DeadlineExceeded")
            pod.container.kill()
        return True

    def _schedule(self, pod: Pod) -> None:
        due = time.monotonic() - self._last_start >= self.apart
        if not self._free or not due or self.unschedulable(pod):
            return
        self._last_start = time.monotonic()
        pod.start(self._free[0], self._folder, self._image, self._env)
        if pod.container:
            self._free.pop(0)
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

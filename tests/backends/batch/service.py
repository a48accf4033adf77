"""The service: gives jobs their machines, starts their nodes, and ends them, until told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from support.hosts import Host, Hosts

from ..container import Container
from ..control import Control
from ..image import Image
from .jobs import Job, Node

QUEUE, COMPUTE = "gang-queue", "gang-machines"
STOP_S = 30.0


class BatchService(Control):
    """A queue before machines. What is told here besides:

    Parameters
    ----------
    stop_timeout : float
        Seconds from SIGTERM to SIGKILL. An operator sets it on the machines, as ECS_CONTAINER_STOP_TIMEOUT.
    notices_loss_after : float
        Seconds from a machine's loss until the service tells that the node has failed. On real ones it takes minutes.
    """

    def __init__(
        self,
        hosts: Hosts,
        indices: Sequence[int],
        folder: Path,
        image: Image,
        env: Mapping[str, str],
        apart: float = 0.0,
        stop_timeout: float = STOP_S,
        notices_loss_after: float = 20.0,
    ) -> None:
        super().__init__(hosts, indices, folder, image, env, apart)
        self.stop_timeout, self.notices_loss_after = stop_timeout, notices_loss_after
        self.held: Callable[[Job, Node], bool] = lambda job, node: False
        self.definitions: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, Job] = {}

    # -- what is asked of it -------------------------------------------------------------------------------------------

    def submit(self, request: dict[str, Any]) -> Job:
        with self.lock:
            job = Job(request, self.definitions[request["jobDefinition"]])
            self.jobs[job.id] = job
            return job

    def terminate(self, job: Job, reason: str) -> None:
        """As TerminateJob: it fails, once its containers are stopped."""
        with self.lock:
            if not job.stopped:
                job.terminated, job.reason = True, reason
                job.stop(self.stop_timeout)
                if not job.main.active:
                    job.end("FAILED", reason)

    def lose(self, host: Host) -> None:
        """A machine goes, all at once."""
        with self.lock:
            for node in (node for job in self.jobs.values() for node in job.nodes if node.active and node.host is host):
                node.lost_at = time.monotonic()
            self.kill_machine(host)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        for job in self.jobs.values():
            self._bring_on(job)

    def containers(self) -> Iterator[Container]:
        for node in (node for job in self.jobs.values() for node in job.nodes):
            if node.container and node.lost_at is None:
                yield node.container

    def _bring_on(self, job: Job) -> None:
        for node in job.nodes:
            node.look(self.notices_loss_after)
        if not job.stopped:
            self._maybe_end(job)
        if not job.stopped and not job.terminated:
            self._place(job)
            self._start(job)
        for node in job.nodes:
            self._take_back(job, node)

    def _maybe_end(self, job: Job) -> None:
        """The main node's end decides; what becomes of another is of no account, and it ends with the main node."""
        if job.main.over:
            status = "SUCCEEDED" if job.main.exit_code == 0 and not job.terminated else "FAILED"
            job.end(status, job.reason or job.main.reason)
            job.stop(self.stop_timeout)
        limit = job.request.get("timeout", {}).get("attemptDurationSeconds")
        if limit and job.main.started and time.time() - job.main.started / 1000 > limit:
            self.terminate(job, "Job attempt duration exceeded timeout")

    def _place(self, job: Job) -> None:
        """All nodes get their machines at once, or none does."""
        if job.main.host is None and len(self.free) >= len(job.nodes):
            for node in job.nodes:
                node.host = self.free.pop(0)

    def _start(self, job: Job) -> None:
        """The main node first, the others once it runs, and in no order that could be relied on."""
        waiting = [
            node for node in reversed(job.nodes) if node.host and not node.container and not self.held(job, node)
        ]
        if job.main in waiting:
            waiting = [job.main]
        elif not job.main.container:
            return
        for node in waiting:
            if self.may_start():
                env = {**self.env, **job.environment(node, QUEUE, COMPUTE)}
                node.start(self.folder / job.id, self.image, env)

    def _take_back(self, job: Job, node: Node) -> None:
        """A machine is free again once its container is gone, or will never be."""
        never = job.stopped and node.container is None
        if node.host and not node.returned and (never or (node.over and node.lost_at is None)):
            node.returned = True
            self.free.append(node.host)

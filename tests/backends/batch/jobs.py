"""Jobs and their nodes: what each runs, and how a job is shown to who asks. The main node's end is the job's."""

from __future__ import annotations

import contextlib
import time
import uuid
from pathlib import Path
from typing import Any

from support.hosts import Host
from support.processes import send_signal

from ..container import SHARED_MEMORY, Container
from ..image import Image

EXITED = "Essential container in task exited"
ACCOUNT = "123456789012"
REGION = "us-east-1"


def milliseconds() -> int:
    """Now, as Batch writes it."""
    return int(time.time() * 1000)


class Node:
    """One node of a job, on a machine of its own. A job of one container has only node 0."""

    def __init__(self, index: int, container: dict[str, Any]) -> None:
        self.index, self.properties = index, container
        self.host: Host | None = None
        self.container: Container | None = None
        self.started, self.stopped = 0, 0  # milliseconds
        self.over = False
        self.returned = False  # its machine, to those that are free
        self.exit_code: int | None = None
        self.reason = ""
        self.lost_at: float | None = None  # monotonic
        self._kill_at: float | None = None  # monotonic

    @property
    def active(self) -> bool:
        """Whether its container runs, as far as the service knows."""
        return self.container is not None and not self.over

    @property
    def status(self) -> str:
        if self.over:
            return "SUCCEEDED" if self.exit_code == 0 else "FAILED"
        return "RUNNING" if self.container else "STARTING" if self.host else "RUNNABLE"

    def start(self, folder: Path, image: Image, env: dict[str, str]) -> None:
        """Run its container; ``env`` is what every container gets besides what the job itself says."""
        assert self.host is not None
        own = {entry["name"]: entry["value"] for entry in self.properties.get("environment", ())}
        name = f"ip-{self.host.address.replace('.', '-')}.ec2.internal"
        argv = self.properties["command"]
        shared = self.properties.get("linuxParameters", {}).get("sharedMemorySize") or SHARED_MEMORY
        place = folder / f"node-{self.index}"
        self.container = Container(self.host, place, image, argv, {**env, **own}, name, shared)
        self.started = milliseconds()

    def stop(self, grace: float) -> None:
        """SIGTERM to the first process, as ``docker stop`` has it, and SIGKILL ``grace`` seconds later."""
        if self.container and not self.over and self._kill_at is None:
            self._kill_at = time.monotonic() + grace
            with contextlib.suppress(AssertionError):  # it has just ended
                if self.lost_at is None and self.container.running():
                    send_signal(self.container.first, 15)

    def look(self, notices_loss_after: float) -> None:
        """Write down an end, and bring one about that is due."""
        if not self.active:
            return
        assert self.container is not None
        if self.lost_at is not None:
            if time.monotonic() - self.lost_at > notices_loss_after:
                self._end(None, "Host EC2 (instance i-0123456789abcdef0) terminated.")
        elif not self.container.running():
            self._end(self.container.wait(), EXITED)
        elif self._kill_at is not None and time.monotonic() > self._kill_at:
            self.container.kill()

    def _end(self, exit_code: int | None, reason: str) -> None:
        self.over, self.exit_code, self.reason, self.stopped = True, exit_code, reason, milliseconds()

    def shown(self) -> dict[str, Any]:
        """Its container as DescribeJobs shows it."""
        kept = ("command", "environment", "image", "jobRoleArn", "linuxParameters", "resourceRequirements")
        found = {key: self.properties[key] for key in kept if key in self.properties}
        return found | ({"exitCode": self.exit_code} if self.exit_code is not None else {})


class Job:
    """One that was submitted, by ``request``, with what its definition says."""

    def __init__(self, request: dict[str, Any], definition: dict[str, Any]) -> None:
        self.id = str(uuid.uuid4())
        self.request, self.definition = request, definition
        self.multi = definition["type"] == "multinode"
        self.nodes = [Node(index, self._properties(index)) for index in range(self._count())]
        self.main = self.nodes[definition["nodeProperties"]["mainNode"] if self.multi else 0]
        self.parameters: dict[str, str] = request.get("parameters", {})
        self.created, self.stopped = milliseconds(), 0
        self.reason = ""
        self.terminated = False
        self._status = ""

    def _count(self) -> int:
        return int(self.definition["nodeProperties"]["numNodes"]) if self.multi else 1

    def _properties(self, index: int) -> dict[str, Any]:
        """A node's part of the definition, with what the request has instead; variables and resources go by name."""
        if not self.multi:
            properties, override = self.definition["containerProperties"], self.request.get("containerOverrides", {})
        else:
            overrides = self.request.get("nodeOverrides", {}).get("nodePropertyOverrides", [])
            properties = self._of_range(self.definition["nodeProperties"]["nodeRangeProperties"], index)["container"]
            override = self._of_range(overrides, index).get("containerOverrides", {}) if overrides else {}
        merged = {**properties, **override}
        for key, name in (("environment", "name"), ("resourceRequirements", "type")):
            both = [*properties.get(key, ()), *override.get(key, ())]
            merged[key] = list({entry[name]: entry for entry in both}.values())
        return merged

    def _of_range(self, ranges: list[dict[str, Any]], index: int) -> dict[str, Any]:
        """That part which is for node ``index``: "0:0", "1:3", ":3" from the first on, "4:" to the last."""
        found = []
        for one in ranges:
            first, _, last = one["targetNodes"].partition(":")
            if int(first or 0) <= index <= int(last or self._count() - 1):
                found.append(one)
        assert len(found) == 1, f"node {index} is in {len(found)} of the ranges; only one is known here"
        return found[0]

    @property
    def attempt(self) -> int:
        """Metaflow's attempt, as it tells it by its parameters."""
        return int(self.parameters["metaflow.retry_count"])

    @property
    def status(self) -> str:
        return self._status or self.main.status

    def end(self, status: str, reason: str) -> None:
        """Write down how it ended; the first word counts."""
        if not self._status:
            self._status, self.reason, self.stopped = status, reason, milliseconds()

    def stop(self, grace: float) -> None:
        """Stop all containers that run."""
        for node in self.nodes:
            node.stop(grace)

    def environment(self, node: Node, queue: str, compute: str) -> dict[str, str]:
        """What Batch sets in a node's container."""
        found = {
            "AWS_BATCH_JOB_ID": f"{self.id}#{node.index}" if self.multi else self.id,
            "AWS_BATCH_JOB_ATTEMPT": "1",
            "AWS_BATCH_CE_NAME": compute,
            "AWS_BATCH_JQ_NAME": queue,
            "AWS_EXECUTION_ENV": "AWS_ECS_EC2",
        }
        if self.multi:
            found |= {
                "AWS_BATCH_JOB_NUM_NODES": str(len(self.nodes)),
                "AWS_BATCH_JOB_NODE_INDEX": str(node.index),
                "AWS_BATCH_JOB_MAIN_NODE_INDEX": str(self.main.index),
            }
        if node is not self.main:
            assert self.main.host is not None
            found["AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"] = self.main.host.address
        return found

    def summary(self) -> dict[str, Any]:
        """The job as ListJobs shows it."""
        return {"jobId": self.id, "jobName": self.request["jobName"], "status": self.status, "createdAt": self.created}

    def shown(self, index: int | None = None) -> dict[str, Any]:
        """The job as DescribeJobs shows it, or one node of it, which is asked for as ``id#index``."""
        node = self.main if index is None else self.nodes[index]
        found: dict[str, Any] = {
            "jobId": self.id if index is None else f"{self.id}#{index}",
            "jobName": self.request["jobName"],
            "jobQueue": self.request["jobQueue"],
            "jobDefinition": self.request["jobDefinition"],
            "parameters": self.parameters,
            "status": self.status if index is None else node.status,
            "createdAt": self.created,
            "startedAt": node.started,
            "attempts": [],
            "isCancelled": False,
            "isTerminated": self.terminated,
        }
        stopped, reason = (self.stopped, self.reason) if index is None else (node.stopped, node.reason)
        if stopped:
            found |= {"stoppedAt": stopped, "statusReason": reason}
            if node.over:
                exit_code = {"exitCode": node.exit_code} if node.exit_code is not None else {}
                attempt = {"startedAt": node.started, "stoppedAt": node.stopped, "statusReason": node.reason}
                found["attempts"] = [{"container": exit_code, **attempt}]
        if self.multi and index is None:
            found["nodeProperties"] = self.definition["nodeProperties"]
        else:
            found["container"] = node.shown()
        if index is not None:
            found["nodeDetails"] = {"nodeIndex": index, "isMainNode": node is self.main}
        return found

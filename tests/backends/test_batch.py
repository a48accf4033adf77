"""What is special to AWS Batch: the main node's end is the job's, whatever becomes of the others."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.hosts import Hosts
from support.requirements import require_packages

from .batch import schema
from .batch.jobs import Job
from .batch.place import BatchPlace
from .batch.service import BatchService
from .container import KILLED
from .flows import AT_WORK, fails
from .image import Image
from .workplace import RUN_S, result
from .workplace import bare_image as bare_image

GONE_S = 30.0
"""For containers to be stopped, on a busy machine, where the service gives them much less."""

FLOW = """
import json, os, threading, time
from functools import partial
from metaflow import FlowSpec, batch, current, gang, step
from metaflow.decorators import _base_step_decorator
from metaflow_extensions.gang.core.step.decorator import GangDecorator

class Tolerant(GangDecorator):
    name = "tolerant"
    runs_on_control_only = True

    def tolerates_lost_nodes(self, num_nodes):
        return True

    def form(self, gang):
        print("FORMED", flush=True)
        return {}

tolerant = partial(_base_step_decorator, Tolerant)

class Unstorable:
    def __reduce__(self):
        print("STORING", flush=True)
        threading.Event().wait()

class Works(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=NODES)

    @DECORATOR
    @batch(cpu=2, shared_memory=512, efa=2)
    @step
    def work(self):
        self.found = BODY
        self.next(self.join)

    @step
    def join(self, inputs):
        self.found = [getattr(one, "found", None) for one in inputs]
        self.next(self.end)

    @step
    def end(self):
        print("RESULT", json.dumps(self.found))

if __name__ == "__main__":
    Works()
"""

WAITS = "Waiting for batch secondary tasks"
"""What Metaflow's decorator prints before it waits, 600 s at most, until the step has as many tasks as were named."""

Batch = Callable[..., BatchPlace]


@pytest.fixture
def batch(tmp_path: Path, image: Image) -> Iterator[Batch]:
    """Call it with what :class:`BatchPlace` takes from ``machines`` on."""
    require_packages(*BatchPlace.packages)
    with contextlib.ExitStack() as stack:
        yield lambda machines, **options: BatchPlace(stack, tmp_path, image, machines, **options)


def flow(nodes: int, decorator: str, body: str) -> str:
    return FLOW.replace("NODES", str(nodes)).replace("DECORATOR", decorator).replace("BODY", body)


@pytest.mark.big
def test_a_job_whose_lost_node_is_tolerated_ends_with_its_body(batch: Batch) -> None:
    place = batch(3)
    body = 'next(1 for _ in iter(lambda: time.sleep(0.1), 0) if os.path.exists("/tmp/finish"))'
    run = place.run(flow(3, "tolerant", body))
    nodes = [place.node(index, "FORMED", run) for index in range(3)]
    nodes[2].kill()
    place.node(0, f"node 2 ({nodes[2].hostname}) was lost", run)
    assert nodes[0].run(["touch", "/tmp/finish"]) == 0
    run.ok(RUN_S)
    assert WAITS not in place.task_logs(run, 0)
    assert result(run) == [1, None]
    job = place.gang()
    assert job is not None
    given = job.main.properties["linuxParameters"]
    assert [device["containerPath"] for device in given["devices"]] == [f"/dev/infiniband/uverbs{n}" for n in (0, 1)]
    assert given["sharedMemorySize"] == 512


@pytest.mark.slow
def test_a_node_that_dies_while_its_state_is_stored_ends_the_job_at_once(batch: Batch) -> None:
    place = batch(2)
    run = place.run(flow(2, "gang", "Unstorable() if current.gang.node_index else 0"))
    place.node(1, "STORING", run).kill()
    run.fails(RUN_S)
    said = place.task_logs(run, 0)
    assert "[gang] The first failure was on node 1" in said and WAITS not in said, said
    assert "Essential container in task exited" in run.output, run.dump()


@pytest.mark.big
def test_a_gang_of_one_is_a_job_of_one_node(batch: Batch) -> None:
    place = batch(1)
    run = place.run(flow(1, "gang", "[node.address for node in current.gang.nodes]"))
    run.ok(RUN_S)
    assert result(run) == [[place.hosts[1].address]]


@pytest.mark.big
def test_an_interrupted_run_leaves_no_container(batch: Batch) -> None:
    place = batch(2, stop_timeout=2.0)
    run = place.start(fails())
    nodes = [place.node(index, AT_WORK, run) for index in range(2)]
    job = place.gang()
    assert job is not None
    listed = place.hosts[0].run([sys.executable, "flow.py", "batch", "list"], place.env, place.folder / "user")
    assert f"[{job.id}] (RUNNING)" in listed.stderr
    run.interrupt()
    run.wait(RUN_S)
    # The shell that is first in a container passes no SIGTERM on, so it takes the SIGKILL that follows.
    assert [node.wait(GONE_S) for node in nodes] == [KILLED, KILLED]
    assert job.terminated and len(place.service.jobs) == 1, run.dump()


# -- that the service is like Batch ------------------------------------------------------------------------------------

SHOWS_ADDRESS = 'echo "[$AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS]"; '


@contextlib.contextmanager
def started(folder: Path, image: Image, *scripts: str) -> Iterator[tuple[Job, BatchService]]:
    """A job with a node for each script, in a service that has as many machines."""
    machines = range(len(scripts))
    with Hosts(len(scripts)) as hosts, BatchService(hosts, machines, folder, image, {}, stop_timeout=1.0) as service:
        ranges: list[dict[str, Any]] = [
            {"targetNodes": f"{index}:{index}", "container": {"command": ["bash", "-c", script]}}
            for index, script in enumerate(scripts)
        ]
        nodes = {"numNodes": len(scripts), "mainNode": 0, "nodeRangeProperties": ranges}
        service.definitions["it"] = {"type": "multinode", "nodeProperties": nodes}
        yield service.submit({"jobName": "job", "jobQueue": "queue", "jobDefinition": "it"}), service


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + GONE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def said(job: Job, index: int) -> str:
    container = job.nodes[index].container
    return container.output if container else ""


def test_the_main_nodes_end_is_the_jobs_and_no_others(tmp_path: Path, image: Image) -> None:
    until_told = SHOWS_ADDRESS + "until [ -e /tmp/end ]; do sleep 0.05; done"
    hears = SHOWS_ADDRESS + "trap 'echo heard; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    with started(tmp_path, image, until_told, "exit 3", hears, "sleep 1000; true") as (job, _):
        wait_until(lambda: job.nodes[1].over and "ready" in said(job, 2) and job.nodes[3].container)
        assert (job.shown(1)["status"], job.status) == ("FAILED", "RUNNING")
        main = job.main.container
        assert main is not None and main.run(["touch", "/tmp/end"]) == 0
        wait_until(lambda: all(node.over for node in job.nodes))
        assert (job.status, [node.exit_code for node in job.nodes]) == ("SUCCEEDED", [0, 3, 0, KILLED])
        assert said(job, 0) == "[]\n"
        assert said(job, 2) == f"[{main.host.address}]\nready\nheard\n"


def test_a_terminated_job_fails_once_its_main_node_has_been_stopped(tmp_path: Path, image: Image) -> None:
    with started(tmp_path, image, "echo ready; sleep 1000; true", "sleep 1000; true") as (job, service):
        wait_until(lambda: "ready" in said(job, 0) and job.nodes[1].container)
        service.terminate(job, "enough")
        assert job.status == "RUNNING"
        wait_until(lambda: all(node.over for node in job.nodes))
        wait_until(lambda: job.stopped)
        assert (job.shown()["status"], job.shown()["statusReason"]) == ("FAILED", "enough")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        ({"jobQueue": None}, "jobQueue"),
        ({"priority": 1}, "priority"),
        ({"parameters": {"a": 1}}, "parameters"),
        ({"containerOverrides": {"resourceRequirements": [{"type": "CPU", "value": "1"}]}}, "VCPU"),
    ],
)
def test_what_the_public_model_lacks_is_refused(change: dict[str, Any], problem: str) -> None:
    require_packages("botocore")
    body = {"jobName": "job", "jobQueue": "queue", "jobDefinition": "it", **change}
    sent = {key: value for key, value in body.items() if value is not None}
    found = schema.check(schema.operations()["/v1/submitjob"].input_shape, sent)
    assert (not found) if not problem else problem in "".join(found)

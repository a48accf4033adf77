"""What the attributes of @metaflow_ray do to a live cluster; what they do to its commands is in test_ray_plan.py."""

from __future__ import annotations

import base64
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from support.faults import kill_process
from support.flows import FlowRunner
from support.frameworks.ray import END_S, START_S, free_port, no_ray_leaks, ray_processes
from support.processes import read_process
from support.requirements import require_packages

pytestmark = pytest.mark.slow

FLOW = """
import os, time
from metaflow import FlowSpec, current, metaflow_ray, resources, step

class Attributes(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @resources(cpu=1, memory=900, shared_memory=200)
    @metaflow_ray(
        main_port=MAIN_PORT, enable_dashboard=True, dashboard_port=DASHBOARD_PORT, enable_worker_logs=True,
        logging_level="info", log_style="pretty", heartbeat_timeout=7, unreachable_timeout=33, worker_polling_freq=0.5,
    )
    @step
    def work(self):
        import ray
        ray.init(logging_level="error")

        @ray.remote
        def speak(word):
            print(word, "is said on a worker", flush=True)
            return ray.get_runtime_context().get_node_id()

        self.where = ray.get([speak.options(resources={f"node:{node}": 1}).remote(f"word{node}") for node in (0, 1)])
        self.address, self.dashboard = current.ray.address, current.ray.dashboard_url
        self.resources = ray.cluster_resources()
        with open(os.environ["RAY_AUTH_TOKEN_PATH"]) as file:
            self.token = file.read().strip()
        with open("up.new", "w") as file:
            file.write(f"{self.dashboard} {self.token}")
        os.rename("up.new", "up")
        while not os.path.exists("finish"):
            time.sleep(0.05)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Attributes()
"""


@pytest.fixture(autouse=True)
def ray_is_here_and_goes() -> Iterator[None]:
    """What all of these need, and what none of them leaves."""
    require_packages("ray")
    with no_ray_leaks():
        yield


def asked(url: str, token: str = "") -> int:
    """The HTTP status that the dashboard answers with. Raises URLError where nobody listens."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_every_attribute_changes_the_cluster(flow_run: FlowRunner) -> None:
    main_port, dashboard_port = free_port(), free_port()
    source = FLOW.replace("MAIN_PORT", str(main_port), 1).replace("DASHBOARD_PORT", str(dashboard_port))
    run = flow_run(source)
    up = run.folder / "up"
    deadline = time.monotonic() + START_S
    while not up.exists():
        assert run.exit_code is None and time.monotonic() < deadline, run.dump()
        time.sleep(0.05)
    url, token = up.read_text().split()
    assert url == f"http://127.0.0.2:{dashboard_port}"
    assert asked(f"{url}/api/version", token) == 200
    assert asked(f"{url}/api/version") == 401, "who has no token learns nothing"
    assert asked(f"{url}/api/version", "f" * 64) in (401, 403)
    with pytest.raises(urllib.error.URLError, match="refused"):
        asked(f"http://127.0.0.1:{dashboard_port}/api/version")

    server = read_process(ray_processes(run, "gcs_server")[0])
    assert server is not None
    command = " ".join(server.command)
    assert f"--gcs_server_port={main_port}" in command, command
    encoded = re.search(r"--config_list=(\S+)", command)
    assert encoded is not None, command
    config = json.loads(base64.b64decode(encoded[1]))
    assert (config["health_check_period_ms"], config["health_check_timeout_ms"]) == (700, 1400)
    assert config["gcs_rpc_server_reconnect_timeout_s"] == 33

    (run.folder / "finish").touch()
    run.ok(START_S)
    artifacts = {artifact.id: artifact.data for artifact in run.node_tasks("work")[0]}
    assert artifacts["address"] == f"127.0.0.2:{main_port}" and len(set(artifacts["where"])) == 2
    assert artifacts["resources"]["object_store_memory"] == 2 * 200 * 1024**2
    assert artifacts["resources"]["memory"] == 2 * 700 * 1024**2

    head, worker = run.node_log("work", 0), run.node_log("work", 1)
    assert f"Ray's dashboard: {url}" in run.node_log("work", 0, "stderr")
    assert re.search(r"^\[RAY:worker-\S+\.out\] word1 is said on a worker$", worker, re.MULTILINE), worker
    assert not re.search(r"^\[RAY:worker-", head, re.MULTILINE), "Ray itself shows it to the program on the head"
    assert "word0 is said on a worker" in head and "word1 is said on a worker" in head
    for log in (head, worker):
        # Of the style "record" each line begins with the time.
        assert re.search(r"^-+$|^Ray runtime started\.$", log, re.MULTILINE), log
        assert not re.search(r"SUCC scripts\.py", log)
    assert token not in run.output


LOST = """
import os, time
from metaflow import FlowSpec, current, metaflow_ray, step

class Lost(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=3)

    @metaflow_ray(tolerate_lost_workers=True)
    @step
    def work(self):
        import ray
        ray.init(logging_level="error")
        print("ready;", flush=True)

        @ray.remote(max_retries=5, scheduling_strategy="SPREAD")
        def part(number):
            time.sleep(0.1)
            return number

        while sum(node.alive for node in current.ray.nodes) > 2:
            time.sleep(0.1)
        self.sum = sum(ray.get([part.remote(number) for number in range(20)]))
        self.alive = [(node.index, node.alive) for node in current.ray.nodes]
        self.next(self.join)

    @step
    def join(self, inputs):
        inputs = list(inputs)
        self.joined = len(inputs)
        (self.sum,) = [node.sum for node in inputs if hasattr(node, "sum")]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Lost()
"""


def test_a_lost_worker_is_tolerated_where_the_step_says_so(flow_run: FlowRunner) -> None:
    run = flow_run(LOST)
    run.wait_for("ready;", START_S)
    kill_process(ray_processes(run, "raylet")[2])
    run.ok(END_S + START_S)
    assert run.artifact("join", "sum") == sum(range(20)) and run.artifact("join", "joined") == 2
    alive = {artifact.id: artifact.data for artifact in run.node_tasks("work")[0]}["alive"]
    assert alive == [(0, True), (1, True), (2, False)]
    told = r"node 2 \(.*\) was lost: raylet was killed by SIGKILL.* The step goes on without it"
    assert re.search(told, run.output), run.dump()

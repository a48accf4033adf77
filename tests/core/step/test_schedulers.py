"""Deployed to a scheduler that runs no gangs, a flow is refused in words, before anything of it is stored."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.flows import flow_environment
from support.requirements import require_packages

LIMIT = 120.0  # seconds: tells "slow" from "hangs" on a busy machine

FLOW = """
from metaflow import FlowSpec, gang, step

class Scheduled(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang
    @step
    def work(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Scheduled()
"""


class Cloud(http.server.ThreadingHTTPServer):
    """Answers every call to AWS with "there is nothing", and remembers which they were."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.calls: list[str] = []


class _Answer(http.server.BaseHTTPRequestHandler):
    def _answer(self) -> None:
        assert isinstance(self.server, Cloud)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.calls.append(f"{self.command} {self.path} {self.headers.get('X-Amz-Target', '')}".strip())
        body = json.dumps({}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = _answer

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def deploy(folder: Path, cloud: Cloud, *command: str) -> str:
    """What a deployment that is refused says."""
    require_packages("boto3")
    (folder / "flow.py").write_text(FLOW)
    environment = flow_environment(
        {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{cloud.server_port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "METAFLOW_DATASTORE_SYSROOT_S3": "s3://bucket/metaflow",
            "METAFLOW_BATCH_JOB_QUEUE": "queue",
            "METAFLOW_SFN_IAM_ROLE": "role",
        }
    )
    argv = [sys.executable, "flow.py", "--no-pylint", "--metadata", "local", "--datastore", "s3", *command]
    done = subprocess.run(argv, env=environment, cwd=folder, capture_output=True, text=True, timeout=LIMIT)
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "Traceback" not in said, said
    return " ".join(said.split())


@pytest.mark.parametrize(
    ("command", "scheduler"),
    [
        (["step-functions", "create", "--only-json"], "AWS Step Functions"),
        (["--with", "batch", "step-functions", "--name", "other", "create"], "AWS Step Functions"),
        (["airflow", "create", "dag.py"], "Airflow"),
        (["--with", "kubernetes", "airflow", "create", "dag.py"], "Airflow"),
    ],
)
def test_a_gang_is_refused_before_anything_is_stored(
    tmp_path: Path, cloud: Cloud, command: list[str], scheduler: str
) -> None:
    said = deploy(tmp_path, cloud, *command)
    assert f"Step work has @gang, and {scheduler} runs no step on several nodes." in said, said
    assert "argo-workflows create" in said
    assert cloud.calls == [] and not (tmp_path / "dag.py").exists()

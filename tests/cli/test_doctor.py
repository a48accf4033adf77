"""``metaflow-gang doctor``: what it finds on this machine, on one with faults, and what its smoke test says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any import of the extension
import pytest
from support.flows import flow_environment
from support.requirements import require_packages, require_root, require_tool
from support.trees import Tree

from metaflow_extensions.gang.cli.doctor import machine, software
from metaflow_extensions.gang.cli.doctor.findings import BROKEN, MISSING, OK, Finding, looked_for, rows

COMMAND = str(Path(sys.executable).with_name("metaflow-gang"))
LIMIT = 240.0


def doctor(
    *words: str,
    folder: Path,
    env: Mapping[str, str | None] | None = None,
    before: tuple[str, ...] = (),
    code: int = 0,
    limit: float = LIMIT,
) -> dict[str, Any]:
    """Its findings by their names, those of the smoke test as "smoke @gang"."""
    argv = [*before, COMMAND, "doctor", "--json", *words]
    done = subprocess.run(argv, cwd=folder, env=flow_environment(env), capture_output=True, text=True, timeout=limit)
    assert done.returncode == code and "Traceback" not in done.stderr, done
    data = json.loads(done.stdout)
    assert data["ok"] == (code == 0)
    return {
        f"smoke {found['name']}" if found["group"] == "Two-node smoke test" else found["name"]: found
        for found in data["findings"]
    }


def program(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


FAULTY = """
set -e
mount -t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm
mount -t tmpfs -o noexec tmpfs "$TMPDIR"
ulimit -n 256
exec "$@"
"""


def test_a_faulty_machine_is_told_fault_by_fault(tmp_path: Path) -> None:
    """A broken mpirun first on the PATH, the /dev/shm of a container, few open files, a TMPDIR that starts nothing."""
    require_root()
    program(
        tmp_path / "bin", "mpirun", "echo mpirun: error while loading shared libraries: libopen-rte.so.40; exit 127"
    )
    (tmp_path / "tmp").mkdir()
    env = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path / "tmp"),
        "NCCL_SOCKET_IFNAME": "ib7",
        "METAFLOW_KUBERNETES_NAMESPACE": None,
        "KUBECONFIG": str(tmp_path / "none"),
    }
    unshare = (require_tool("unshare"), "--mount", "--propagation", "private", "sh", "-c", FAULTY, "sh")
    found = doctor("--no-smoke", folder=tmp_path, env=env, before=unshare, code=1)
    broken = {name: what for name, what in found.items() if what["state"] == BROKEN}
    assert set(broken) == {"@mpi", "/dev/shm", "open files", "TMPDIR", "NCCL_SOCKET_IFNAME"}, broken
    said = broken["@mpi"]["found"]
    assert f"{tmp_path / 'bin' / 'mpirun'} does not work: `mpirun --version` exited with code 127, and says:" in said
    assert "libopen-rte.so.40" in said
    assert broken["/dev/shm"]["found"] == "64 MiB, 64 MiB of it free"
    assert "docker run --shm-size=8g" in broken["/dev/shm"]["advice"]
    assert broken["open files"]["found"].startswith("256, at most 256")
    assert "mounted noexec" in broken["TMPDIR"]["advice"]
    assert "no such interface" in broken["NCCL_SOCKET_IFNAME"]["advice"]
    assert (found["@gang"]["state"], found["AWS Batch"]["state"]) == (OK, "not needed")
    assert found["@torchrun"]["state"] in (OK, MISSING) and found["Python"]["found"].endswith(sys.executable)
    assert all(what["advice"] for what in broken.values()), "what to do"


def test_frameworks_that_are_missing_or_half_installed() -> None:
    def look(*about: Any, **more: Any) -> Finding:
        return software._framework(software.Framework("@some", *about, **more))

    assert look("no_such", ("no-such",), "pip install no-such").state == MISSING
    listed = look("no_such", ("pytest",), "pip install pytest")
    assert listed.state == BROKEN and listed.advice.endswith("pip install pytest --force-reinstall")
    half = look("pytest", ("pytest",), "pip install pytest", needs=("no_such",))
    assert half.state == BROKEN and "It needs no_such" in half.advice
    good = look("pytest", ("no-such", "pytest"), "pip install pytest", beside=("pytest-timeout", "no-such"))
    assert good.state == OK and good.found.startswith(f"pytest {pytest.__version__}, pytest-timeout ")


def test_a_driver_whose_devices_or_library_do_not_work(tmp_path: Path) -> None:
    proc, dev = tmp_path / "proc", tmp_path / "dev"
    (proc / "gpus" / "0000:01:00.0").mkdir(parents=True)
    dev.mkdir()
    (proc / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (user@host)\n"
    )
    (proc / "gpus" / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 24\n")
    for name in ("nvidiactl", "nvidia0"):
        (dev / name).touch()
    if machine.nvml.is_there():
        pytest.skip("This machine has a driver that works.")
    (found,) = machine.gpus(str(proc), str(dev))
    assert found.state == BROKEN and "NVIDIA H200" in found.found and "driver 570.86.15" in found.found
    assert "libnvidia-ml.so.1" in found.advice


def test_a_check_that_fails_is_a_finding_and_the_table_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_files() -> list[Finding]:
        raise OSError("what is this")

    (found,) = looked_for("Machine", [open_files])
    assert (found.name, found.state, found.found) == ("open files", BROKEN, "OSError: what is this")
    monkeypatch.setenv("COLUMNS", "80")
    told = rows(Finding("Machine", "TMPDIR", OK, "words " * 20, "do that " * 10))
    assert all(len(line) <= 80 for line in told.splitlines()) and told.startswith(
        "  TMPDIR             ok          words"
    )
    assert told.splitlines()[-1].startswith(" " * 36) and "-> do that" in told


class Services(BaseHTTPRequestHandler):
    """The metadata service, S3, AWS Batch and a Kubernetes cluster, each as far as the doctor asks."""

    groups = ("batch", "jobset.x-k8s.io")
    queue = "ENABLED"
    s3 = 404

    def _reply(self, status: int, data: Any) -> None:
        body = b"" if data is None else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("METADATA_SERVICE_VERSION", "2.4.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        version = {"groupVersion": "v1", "version": "v1"}
        groups = [{"name": name, "versions": [version], "preferredVersion": version} for name in self.groups]
        self._reply(200, {"kind": "APIGroupList", "groups": groups} if self.path.startswith("/apis") else "pong")

    def do_HEAD(self) -> None:
        self._reply(self.s3, None)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._reply(200, {"jobQueues": [{"jobQueueName": "gpus", "state": self.queue, "status": "VALID"}]})

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def services(handler: type[Services]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def configured(url: str, folder: Path, **more: str) -> dict[str, str | None]:
    config = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {}}],
    }
    (folder / "kubeconfig").write_text(json.dumps(config))
    return {
        "METAFLOW_DEFAULT_METADATA": "service",
        "METAFLOW_SERVICE_URL": url,
        "METAFLOW_DEFAULT_DATASTORE": "s3",
        "METAFLOW_DATASTORE_SYSROOT_S3": "s3://bucket/root",
        "METAFLOW_S3_ENDPOINT_URL": url,
        "METAFLOW_BATCH_JOB_QUEUE": "gpus",
        "AWS_ENDPOINT_URL_BATCH": url,
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key",
        "KUBECONFIG": str(folder / "kubeconfig"),
        **more,
    }


@pytest.mark.slow
def test_the_services_of_the_configuration_are_asked(tmp_path: Path) -> None:
    require_packages("boto3", "kubernetes")

    class Ill(Services):
        groups, queue, s3 = ("batch",), "DISABLED", 403

    with services(Services) as url:
        env = configured(url, tmp_path, METAFLOW_KUBERNETES_NAMESPACE="fourteen-chars")
        well = doctor("--no-smoke", folder=tmp_path, env=env)
    assert well["metadata"]["found"] == f"service, {url}: answers (version 2.4.1)"
    assert well["datastore"]["found"] == "s3, s3://bucket/root"
    assert well["AWS Batch"]["found"] == "queue gpus: ENABLED, VALID"
    assert well["Kubernetes"]["found"] == "the cluster answers, with JobSets"
    assert well["namespace"]["advice"] == "Under Argo Workflows it may have 12 characters."
    with services(Ill) as url:
        env = configured(url, tmp_path, METAFLOW_KUBERNETES_NAMESPACE="some-longer-name")
        # A port where nobody answers, as where a tunnel is down.
        env["METAFLOW_SERVICE_URL"] = "http://127.0.0.1:9"
        ill = doctor("--no-smoke", folder=tmp_path, env=env, code=1)
    broken = {name: found for name, found in ill.items() if found["state"] == BROKEN}
    assert set(broken) == {"metadata", "datastore", "AWS Batch", "Kubernetes", "namespace"}, broken
    assert "Connection refused" in broken["metadata"]["found"]
    assert broken["AWS Batch"]["found"] == "queue gpus: DISABLED, VALID"
    assert broken["Kubernetes"]["found"] == "the cluster answers, without JobSets"
    assert broken["namespace"]["found"] == "some-longer-name, 16 characters"


@pytest.mark.slow
def test_the_smoke_test_runs_what_is_there_and_shows_why_one_fails(tmp_path: Path) -> None:
    mpirun = require_tool("mpirun", "openmpi-bin")
    text = f'[ "$1" = --version ] && exec {mpirun} "$@"\necho "no daemon can be started" >&2; exit 5'
    program(tmp_path / "bin", "mpirun", text)
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    found = doctor("--launcher", "@mpi", "--launcher", "gang", folder=tmp_path, env=env, code=1)
    assert found["smoke @gang"]["state"] == OK and found["@mpi"]["state"] == OK
    failed = found["smoke @mpi"]
    assert failed["state"] == BROKEN and failed["found"].startswith("failed after ")
    assert failed["output"].startswith("The first failure was on node 0") and "no daemon" in failed["output"], failed
    assert "@torchrun" not in found and "smoke @torchrun" not in found
    assert [path.name for path in tmp_path.iterdir()] == ["bin"], "the flows had a folder of their own"


@pytest.mark.slow
def test_the_smoke_test_of_torchrun(tmp_path: Path) -> None:
    require_packages("torch")
    argv = [COMMAND, "doctor", "--launcher", "torchrun"]
    done = subprocess.run(argv, cwd=tmp_path, env=flow_environment(), capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-2].startswith("  @torchrun          ok          two nodes, ") or done.stdout
    assert "Two-node smoke test (--no-smoke leaves it out)\n  @torchrun          ok          two nodes" in done.stdout
    refused = subprocess.run([COMMAND, "doctor", "--launcher", "torch"], capture_output=True, text=True, timeout=LIMIT)
    assert refused.returncode == 2 and refused.stderr.startswith(
        "metaflow-gang: There is no launcher torch: it is one of"
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_smoke_test_ends_its_flows(number: int, tmp_path: Path) -> None:
    env = flow_environment({"TMPDIR": str(tmp_path)})
    run = Tree([COMMAND, "doctor", "--launcher", "gang"], env=env, cwd=tmp_path)
    try:
        run.wait_for("Two-node smoke test", LIMIT)
        deadline = time.monotonic() + LIMIT
        while not any("smoke.py" in process.command for process in run.below()):
            assert time.monotonic() < deadline, run.dump()
            time.sleep(0.05)
        os.kill(run.pid, number)
        assert run.wait(60) == 130, run.dump()
        assert run.left(5) == [] and not list(tmp_path.glob("metaflow-gang-doctor-*"))
    finally:
        run.close()


@pytest.mark.big
@pytest.mark.timeout(600)
def test_the_smoke_test_runs_a_flow_of_each_launcher(tmp_path: Path) -> None:
    require_packages("torch", "deepspeed", "ray", "tensorflow", "jax", "mpi4py")
    found = doctor(folder=tmp_path, limit=500.0)
    tested = {name: what["state"] for name, what in found.items() if name.startswith("smoke ")}
    expected = ("gang", "torchrun", "deepspeed", "metaflow_ray", "tensorflow", "jax", "mpi")
    assert tested == {f"smoke @{name}": OK for name in expected}, found

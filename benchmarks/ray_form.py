"""How long a gang takes to form a Ray cluster, against `ray start` by hand on the same machine in the same run.

    python benchmarks/ray_form.py [--pairs 5] [--nodes 3]

By hand: `ray start --head`, and when that is up `ray start` for all other nodes at once, until the last says that it is
up. The gang: from the last node's task_pre_step (what Metaflow does before is not ours) to the first line of the body,
which finds all nodes alive. Each pair is measured in turn, on the loopback interface. The exit code says whether the
median ratio kept the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.processes import descendants, read_process, send_signal, wait_gone

FLOW = Path(__file__).resolve().parent / "ray_form_flow.py"
TIMEOUT_S = 300
LIMIT = 1.15
ADDRESS = "127.0.0.2"  # Ray would put the machine's own address for 127.0.0.1.
READY = "Ray runtime started"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


def start(folder: Path, node: int, *options: str) -> subprocess.Popen[str]:
    """`ray start` of one node, in the foreground, so that it is ours to end."""
    argv = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *options]
    argv += ["--node-ip-address", ADDRESS, "--temp-dir", str(folder / str(node)), "--num-cpus", "1"]
    argv += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if re.search(READY, line):
            return
    raise SystemExit("".join(said))


def end(processes: list[subprocess.Popen[str]]) -> None:
    roots = [found for process in processes if (found := read_process(process.pid))]
    everything = [*roots, *(child for root in roots for child in descendants(root.pid))]
    for process in everything:
        send_signal(process, 9)
    for process in processes:
        process.wait(TIMEOUT_S)
        assert process.stdout is not None
        process.stdout.close()
    assert not wait_gone([process.pid for process in everything], TIMEOUT_S)


def by_hand(nodes: int) -> float:
    """Seconds until the last node is up."""
    folder = Path(tempfile.mkdtemp(prefix="rb-"))  # short: Ray's sockets lie below
    port, processes = free_port(), []
    started = time.time()
    try:
        head = ["--head", "--port", str(port), "--ray-client-server-port", str(free_port())]
        processes.append(start(folder, 0, *head, "--include-dashboard", "false"))
        wait_ready(processes[0])
        processes += [start(folder, node, "--address", f"{ADDRESS}:{port}") for node in range(1, nodes)]
        for process in processes[1:]:
            wait_ready(process)
        return time.time() - started
    finally:
        end(processes)
        shutil.rmtree(folder)


def gang(nodes: int) -> float:
    """Seconds from the last task_pre_step to the body."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = {**os.environ, "BENCHMARK_FOLDER": name, "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(folder / "store")}
        argv = [sys.executable, str(FLOW), "--datastore", "local", "--metadata", "local", "run", "--nodes", str(nodes)]
        env = {"USERNAME": "benchmark", **env}
        run = subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if run.returncode:
            raise SystemExit(run.stdout + run.stderr)
        records = [json.loads(path.read_text()) for path in folder.glob("*-*.json")]
    (body,) = (record["body"] for record in records if "body" in record)
    return float(body) - max(record["pre_step"] for record in records if "pre_step" in record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=3)
    options = parser.parse_args()
    ratios = []
    print(f"pair  by hand     gang  ratio   ({options.nodes} nodes, seconds)")
    for pair in range(options.pairs):
        hand, ours = by_hand(options.nodes), gang(options.nodes)
        ratios.append(ours / hand)
        print(f"{pair + 1:4} {hand:8.2f} {ours:8.2f} {ours / hand:6.2f}", flush=True)
    ratio = statistics.median(ratios)
    print(f"median ratio {ratio:.2f}, its limit {LIMIT}")
    sys.exit(ratio > LIMIT)


if __name__ == "__main__":
    main()

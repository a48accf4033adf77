"""How long a gang takes to user code, against bare torchrun on the same machine in the same run.

    python benchmarks/torchrun.py [--pairs 5] [--nproc 1]

Each pair runs both, one after the other, on two local nodes. Measured are
- *to the first collective*: bare, from starting the two agents, and in the gang, from the last node's task_pre_step
  (what Metaflow does before is not ours), to the moment the last rank has come through its first all_reduce;
- *after the script*: in the gang, from the last rank's last statement to the end of control's step: all ranks gone,
  the other node's task stored and gone, and its log stored. ("stored": until control's own task is stored, too.)
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPT = HERE / "torchrun_script.py"
TIMEOUT_S = 300


def moments(folder: Path, moment: str) -> list[float]:
    """What the processes wrote down of one moment."""
    records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return [record[moment] for record in records if moment in record]


def bare(folder: Path, nproc: int) -> float:
    """Seconds from starting two agents to the last rank's first collective."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "BENCHMARK_FOLDER": str(folder), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    started = time.time()
    agents = []
    for node in range(2):
        argv = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(node)]
        argv += ["--nproc_per_node", str(nproc), "--master_addr", "127.0.0.1", "--master_port", str(port), str(SCRIPT)]
        agents.append(subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    for agent in agents:
        if agent.wait(TIMEOUT_S):
            raise SystemExit(f"bare torchrun failed with exit code {agent.returncode}")
    return max(moments(folder, "first_collective")) - started


def gang(folder: Path, nproc: int) -> tuple[float, float, float]:
    """Seconds from the last node's task_pre_step to the first collective; and after the script, to two ends."""
    env = {**os.environ, "BENCHMARK_FOLDER": str(folder), "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(folder / "store")}
    env = {"USERNAME": "benchmark", **env, "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, str(HERE / "torchrun_flow.py"), "--datastore", "local", "--metadata", "local"]
    argv += ["run", "--script", str(SCRIPT), "--nproc", str(nproc)]
    run = subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if run.returncode:
        raise SystemExit(run.stdout + run.stderr)
    script_end = max(moments(folder, "script_end"))
    return (
        max(moments(folder, "first_collective")) - max(moments(folder, "pre_step")),
        max(moments(folder, "post_step")) - script_end,
        max(moments(folder, "finished")) - script_end,
    )


def main() -> None:
    """Print every pair, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--nproc", type=int, default=1, help="ranks on each of the two nodes")
    options = parser.parse_args()
    rows = []
    print("pair   to the first collective          after the script, to")
    print("       bare     gang     ratio          end of step   stored")
    for pair in range(options.pairs):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            tool = bare(Path(one), options.nproc)
            ours, end, stored = gang(Path(other), options.nproc)
        rows.append((tool, ours, ours / tool, end, stored))
        print(row(str(pair + 1), rows[-1]), flush=True)
    print(row("median", tuple(statistics.median(column) for column in zip(*rows, strict=True))))


def row(name: str, figures: tuple[float, ...]) -> str:
    """A line of the table."""
    tool, ours, ratio, end, stored = figures
    return f"{name:6s} {tool:5.2f} s  {ours:5.2f} s  {ratio:5.2f}          {end:5.2f} s       {stored:5.2f} s"


if __name__ == "__main__":
    main()

"""How long a gang takes to user code, against bare torchrun on the same machine in the same run.

    python benchmarks/torchrun.py [--pairs 5] [--nproc 1]

Each pair runs both, one after the other, on two local nodes. Measured are
- *to the first collective*: bare, from starting the two agents, and in the gang, from the last node's task_pre_step
  (what Metaflow does before is not ours), to the moment the last rank has come through its first all_reduce;
- *after the script*: in the gang, from the end of the last rank's process to the end of control's step: the other
  node's task stored and gone, and its log stored. "From its last statement" begins before Python itself goes, which
  with torch takes a third of a second that the bare tool spends as well ("bare exit").
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPT = HERE / "torchrun_script.py"
TIMEOUT_S = 300


def moments(folder: Path, moment: str) -> list[float]:
    """What the processes wrote down of one moment."""
    records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return [record[moment] for record in records if moment in record]


class Ends(threading.Thread):
    """Notes when the last of ``count`` ranks has ended, which nobody in it can do."""

    def __init__(self, folder: Path, count: int) -> None:
        super().__init__()
        self._folder, self._count = folder, count
        self.last = 0.0
        self.start()

    def run(self) -> None:
        seen: dict[Path, int] = {}
        deadline = time.monotonic() + TIMEOUT_S
        while len(seen) < self._count and time.monotonic() < deadline:
            for path in set(self._folder.glob("rank-*.pid")) - seen.keys():
                if path.read_text():
                    seen[path] = os.pidfd_open(int(path.read_text()))
            time.sleep(0.01)
        for descriptor in seen.values():
            select.select([descriptor], [], [], TIMEOUT_S)
            self.last = time.time()
            os.close(descriptor)


def bare(folder: Path, nproc: int) -> tuple[float, float]:
    """Seconds from starting two agents to the last rank's first collective, and from its last statement to its end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "BENCHMARK_FOLDER": str(folder), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    started = time.time()
    ends = Ends(folder, 2 * nproc)
    agents = []
    for node in range(2):
        argv = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(node)]
        argv += ["--nproc_per_node", str(nproc), "--master_addr", "127.0.0.1", "--master_port", str(port), str(SCRIPT)]
        agents.append(subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    for agent in agents:
        if agent.wait(TIMEOUT_S):
            raise SystemExit(f"bare torchrun failed with exit code {agent.returncode}")
    ends.join()
    return max(moments(folder, "first_collective")) - started, ends.last - max(moments(folder, "script_end"))


def gang(folder: Path, nproc: int) -> tuple[float, float, float]:
    """Seconds from the last task_pre_step to the first collective; to the step's end from two ends of the script."""
    env = {**os.environ, "BENCHMARK_FOLDER": str(folder), "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(folder / "store")}
    env = {"USERNAME": "benchmark", **env, "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, str(HERE / "torchrun_flow.py"), "--datastore", "local", "--metadata", "local"]
    argv += ["run", "--script", str(SCRIPT), "--nproc", str(nproc)]
    ends = Ends(folder, 2 * nproc)
    run = subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if run.returncode:
        raise SystemExit(run.stdout + run.stderr)
    ends.join()
    step_end = max(moments(folder, "post_step"))
    return (
        max(moments(folder, "first_collective")) - max(moments(folder, "pre_step")),
        step_end - ends.last,
        step_end - max(moments(folder, "script_end")),
    )


def main() -> None:
    """Print every pair, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--nproc", type=int, default=1, help="ranks on each of the two nodes")
    options = parser.parse_args()
    rows = []
    print("pair    to the first collective      from the script's end to the step's     bare")
    print("        bare     gang    ratio       process     last statement              exit")
    for pair in range(options.pairs):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            tool, tool_exit = bare(Path(one), options.nproc)
            ours, process, statement = gang(Path(other), options.nproc)
        rows.append((tool, ours, ours / tool, process, statement, tool_exit))
        print(row(str(pair + 1), rows[-1]), flush=True)
    print(row("median", tuple(statistics.median(column) for column in zip(*rows, strict=True))))


def row(name: str, figures: tuple[float, ...]) -> str:
    """A line of the table."""
    tool, ours, ratio, process, statement, tool_exit = figures
    start = f"{name:6s} {tool:5.2f} s  {ours:5.2f} s  {ratio:5.2f}"
    return f"{start}      {process:5.2f} s        {statement:5.2f} s              {tool_exit:5.2f} s"


if __name__ == "__main__":
    main()

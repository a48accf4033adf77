"""What a wide foreach costs Slurm: its tasks as arrays of jobs, and each as a submission of its own.

    python benchmarks/slurm_foreach.py [--tasks 200] [--max-workers 50]

On a real Slurm of 4 nodes, which are network namespaces of this machine, so it needs root. Both run the same flow on
the same Slurm, one after the other. Counted are what slurmctld itself counts (sdiag): submissions, and questions about
jobs; the processor time that it has used, by /proc; and the seconds of the whole run. The tasks do nothing: the time is
that of Metaflow's processes, which share this machine with the nodes.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.flows import flow_environment
from support.remote import RemoteTask
from support.slurm.cluster import Slurm

TIMEOUT_S = 3600.0

FLOW = """
import os
from metaflow import FlowSpec, slurm, step

class Wide(FlowSpec):
    @step
    def start(self):
        self.tasks = list(range(int(os.environ["TASKS"])))
        self.next(self.work, foreach="tasks")

    @slurm
    @step
    def work(self):
        self.square = self.input ** 2
        self.next(self.join)

    @step
    def join(self, inputs):
        assert all(one.square == task ** 2 for task, one in enumerate(inputs))
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Wide()
"""


def controller_s(slurm: Slurm) -> float:
    """Seconds of processor time that slurmctld has used."""
    (pid,) = (one.pid for one in slurm.hosts[0].processes() if one.command[0] == "slurmctld")
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def requests(slurm: Slurm) -> dict[str, int]:
    """How often slurmctld was asked, by the kind of request."""
    found = re.findall(r"(REQUEST_\w+)\s*\(\s*\d+\) count:(\d+)", slurm.run("sdiag"))
    return {kind: int(count) for kind, count in found}


def measure(slurm: Slurm, folder: Path, arrays: bool, options: argparse.Namespace) -> None:
    """Run the flow, and print a line of the table."""
    folder.mkdir()
    (folder / "flow.py").write_text(FLOW)
    env = flow_environment(
        {
            "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(folder / "datastore"),
            "METAFLOW_SLURM_ARRAYS": str(int(arrays)),
            "SLURM_CONF": slurm.env["SLURM_CONF"],
            "PATH": slurm.env["PATH"],
            "TASKS": str(options.tasks),
        }
    )
    argv = [sys.executable, "flow.py", "run", f"--max-workers={options.max_workers}"]
    before, used_s, since = requests(slurm), controller_s(slurm), time.monotonic()
    argv.append(f"--max-num-splits={options.tasks}")
    RemoteTask(slurm.hosts[0], argv, env, folder, folder / "log").ok(TIMEOUT_S)
    seconds = time.monotonic() - since
    asked = {kind: count - before.get(kind, 0) for kind, count in requests(slurm).items()}
    about_jobs = sum(count for kind, count in asked.items() if "JOB" in kind and "INFO" in kind)
    print(
        f"{'arrays' if arrays else 'one sbatch each'}: {asked['REQUEST_SUBMIT_BATCH_JOB']} submissions, {about_jobs} "
        f"questions about jobs, slurmctld {controller_s(slurm) - used_s:.1f} s of processor time, {seconds:.0f} s",
        flush=True,
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--max-workers", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Slurm(4, cpus=8) as slurm:
        for arrays in (True, False):
            measure(slurm, Path(folder) / str(arrays), arrays, options)


if __name__ == "__main__":
    main()

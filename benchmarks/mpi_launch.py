"""How long mpirun takes to start `hostname` on 4 hosts with 2 slots each, over ssh and over the gang's own channel.

    python benchmarks/mpi_launch.py [--runs 7]

The hosts are network namespaces of this machine, so it needs root; OpenSSH and the MPIs that the tests use have to be
there. Both transports are measured in one gang, in turn, from the call of ``current.mpi.run`` to its return. Open MPI's
daemons look at every PCI device first (hwloc), which has nothing to do with the transport and takes a virtual machine's
emulated PCI longer than all the rest: that MPI is measured with it, as by default, and without. The limit, channel at
most half of ssh's time, is for the latter; the exit code says whether it was kept.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.frameworks.mpi import ALL, MPICH, path_with
from support.remote import remote_gang

TIMEOUT_S = 180

FLOW = """
import dataclasses, json, os, time
from metaflow import FlowSpec, current, mpi, resources, step

class Launch(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @resources(cpu=2)
    @mpi(transport="ssh")
    @step
    def work(self):
        ssh = current.mpi
        channel = dataclasses.replace(ssh, _site=dataclasses.replace(ssh._site, rsh=ssh._channel.rsh))
        times = {"ssh": [], "channel": []}
        for run in range(int(os.environ["RUNS"]) + 1):
            for name, executor in (("ssh", ssh), ("channel", channel)):
                started = time.monotonic()
                executor.run(program="hostname")
                if run:  # the first one reads programs from the disk
                    times[name].append(time.monotonic() - started)
        print("times " + json.dumps(times))
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Launch()
"""


LIMIT = 0.5
WITHOUT_PCI = {"HWLOC_COMPONENTS": "-pci,-linuxio"}


def measure(kind: str, runs: int, env: dict[str, str]) -> dict[str, list[float]]:
    """Seconds of each run, by transport."""
    with tempfile.TemporaryDirectory() as folder, remote_gang(Path(folder), FLOW, 4) as gang:
        control, *others = gang.start_all(PATH=path_with(kind), RUNS=str(runs), **env)
        output = control.ok(TIMEOUT_S)
        for task in others:
            task.ok(TIMEOUT_S)
    assert output.count("gang3") == 2 * 2 * (runs + 1), "each run starts two ranks on each host"
    found = re.search(r"^times (.*)$", output, re.MULTILINE)
    assert found, output
    return dict(json.loads(found[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    print(f"{'':32}{'ssh':>9}{'channel':>9}  channel/ssh (medians of {runs}, seconds)")
    worst = 0.0
    for kind in ALL:
        for name, env in ((kind, {}), (f"{kind}, without PCI", WITHOUT_PCI)):
            if kind == MPICH and env:
                continue
            times = measure(kind, runs, env)
            ssh, channel = (statistics.median(times[transport]) for transport in ("ssh", "channel"))
            print(f"{name:32}{ssh:9.3f}{channel:9.3f}  {channel / ssh:.2f}", flush=True)
            if env or kind == MPICH:
                worst = max(worst, channel / ssh)
    print(f"the largest ratio that counts is {worst:.2f}, its limit {LIMIT}")
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    main()

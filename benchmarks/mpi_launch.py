"""How long mpirun takes to start `hostname` on 4 hosts with 2 slots each, over ssh and over the gang's own channel.

    python benchmarks/mpi_launch.py [--runs 7]

The hosts are network namespaces of this machine, so it needs root; OpenSSH and the MPIs that the tests use have to be
there. Both transports are measured in one gang, in turn, from the call of ``current.mpi.run`` to its return.
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

from support.mpi import ALL, path_with
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
        channel = dataclasses.replace(ssh, _site=dataclasses.replace(ssh._site, rsh=ssh._peers.rsh))
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


def measure(kind: str, runs: int) -> dict[str, list[float]]:
    """Seconds of each run, by transport."""
    with tempfile.TemporaryDirectory() as folder, remote_gang(Path(folder), FLOW, 4) as gang:
        control, *others = gang.start_all(PATH=path_with(kind), RUNS=str(runs))
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
    print(f"{'':12}{'ssh':>9}{'channel':>9}  channel/ssh (medians of {runs}, seconds)")
    for kind in ALL:
        times = measure(kind, runs)
        ssh, channel = (statistics.median(times[name]) for name in ("ssh", "channel"))
        print(f"{kind:12}{ssh:9.3f}{channel:9.3f}  {channel / ssh:.2f}", flush=True)


if __name__ == "__main__":
    main()

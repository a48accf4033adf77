"""The flow of card.py: two nodes whose body waits, with a card or without one."""

import json
import os
import time
from pathlib import Path

from metaflow import FlowSpec, current, gang, step

CARD = os.environ["BENCHMARK_CARD"] == "True"


class CardBenchmark(FlowSpec):
    """One gang."""

    @step
    def start(self):
        """Two nodes."""
        self.next(self.work, num_parallel=2)

    @gang(card=CARD)
    @step
    def work(self):
        """Wait, and write down when the body began and ended."""
        begun = time.time()
        with open(f"/proc/{os.getpid()}/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        started = current.gang.all_gather(begun - age)
        time.sleep(float(os.environ["BENCHMARK_SECONDS"]))
        current.gang.barrier()
        if current.gang.is_control:
            moments = {"started": max(started), "begun": begun, "done": time.time()}
            Path(os.environ["BENCHMARK_FOLDER"], "moments.json").write_text(json.dumps(moments))
        self.next(self.join)

    @step
    def join(self, inputs):
        """Nothing."""
        self.next(self.end)

    @step
    def end(self):
        """Nothing."""


if __name__ == "__main__":
    CardBenchmark()

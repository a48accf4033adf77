"""A flow whose ranks do in each try what the test says, and the ranks' script: plain Python, which starts fast."""

from __future__ import annotations

import json
import re
from typing import Any

FLOW = """
import importlib, json, os, sys
from metaflow import FlowSpec, Parameter, current, LAUNCHER, step
import ranks

def again(failure):
    print(f"asked about {failure.kind} {failure.signal or failure.exit_code} {failure.exception};", flush=True)
    return failure.exception == "RuntimeError"

class Restarts(FlowSpec):
    how = Parameter("how", default="script")

    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @LAUNCHER(ATTRIBUTES)
    @step
    def work(self):
        print(f"body of node {current.gang.node_index} {os.getpid()};", flush=True)
        what = {
            "script": {"entrypoint": "ranks.py", "entrypoint_args": [os.environ["ACTS"]]},
            "function": {"entrypoint": ranks.main, "entrypoint_args": {"acts": os.environ["ACTS"]}},
        }
        if self.how == "together":
            argv = [sys.executable, "ranks.py", os.environ["ACTS"]]
            env = {"RANK": str(current.gang.node_index)}
            restarts = os.environ["RESTARTS"].split()  # of all nodes, or of each
            restarts = int(restarts[current.gang.node_index % len(restarts)])
            self.returned = current.gang.run_together(argv, env, restarts=restarts)
        elif self.how == "mpi":
            self.returned = current.mpi.run(["-n", "4"], [sys.executable, "ranks.py", os.environ["ACTS"]])
        else:
            options = [json.loads(os.environ["OPTIONS"])] if "OPTIONS" in os.environ else []
            self.returned = getattr(current, "CURRENT").run(*options, **what[self.how])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.returned = inputs[0].returned
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Restarts()
"""

RANKS = """
import glob, json, os, signal, sys, time

def log(rank):
    with open(os.environ["METAFLOW_GANG_LOG_FILE"], "a") as file:
        file.write(json.dumps({"rank": rank, "step": 1, "values": {"loss": 0.5}}) + "\\n")

def main(acts):
    rank = os.environ.get("RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"]
    tries = os.environ.get("GANG_RESTART", "none")
    counts = [os.environ.get(f"TORCHELASTIC_{name}", "none") for name in ("RESTART_COUNT", "MAX_RESTARTS")]
    print(f"rank {rank} in try {tries} ({', '.join(counts)}) is {os.getpid()};", flush=True)
    open(f"begun-{tries}-{rank}", "w").close()
    of_try = json.loads(acts).get(tries, {})
    for word in of_try.get(rank, of_try.get("*", "")).split():
        if word == "progress":
            log(rank)
        elif word.startswith("with"):  # so many ranks have begun
            deadline = time.monotonic() + 60
            while len(glob.glob(f"begun-{tries}-*")) < int(word[4:]):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        elif word == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == "raise":
            raise RuntimeError(f"deliberate in rank {rank} in try {tries}")
        elif word == "import":
            import nowhere_to_be_found
        elif word == "leave":
            os._exit(0)
        elif word == "usage":
            sys.exit(2)
        elif word == "stay":
            time.sleep(1000)
        elif word == "meet":
            import torch, torch.distributed as dist
            dist.init_process_group("gloo")
            dist.all_reduce(torch.ones(1))
        elif word == "reduce":
            while True:
                dist.all_reduce(torch.ones(1))
        else:
            time.sleep(float(word))
    return f"{rank} of try {tries}"

if __name__ == "__main__":
    main(sys.argv[-1])  # DeepSpeed adds one before it
"""


def flow(launcher: str, attributes: str, current: str = "") -> str:
    """The flow under one launcher, whose name on ``current`` is ``current``."""
    text = FLOW.replace("LAUNCHER", launcher).replace("CURRENT", current or launcher)
    return text.replace("ATTRIBUTES", attributes)


def lines_about_restarts(output: str, count: int) -> list[str]:
    """The lines about restarts in a log; AssertionError, which shows the log, where these are not ``count``."""
    lines = re.findall(r"\[gang\] (restart .*)", output)
    assert len(lines) == count, f"{len(lines)} lines about restarts, and not {count}:\n{output}"
    return lines


def acts(**tries: dict[int | str, str]) -> dict[str, str]:
    """The environment that says what ranks do: ``acts(try0={3: "progress kill"})``; "*" is every other rank."""
    return {"ACTS": json.dumps({name.removeprefix("try"): _by_rank(what) for name, what in tries.items()})}


def _by_rank(what: dict[int | str, str]) -> dict[str, Any]:
    return {str(rank): words for rank, words in what.items()}

"""How long a training stands still when a rank is killed: a gang with restarts, against bare torchrun --max-restarts.

    python benchmarks/restarts.py [--pairs 5] [--training digits|gpt] [--retries 1]

On 4 hosts with 2 ranks each, which are network namespaces of this machine, so it needs root. Both run the same script
(restarts_train.py) on the same hosts, one after the other; rank 5 kills itself at step 200. Measured is the time from
that to the moment at which all ranks have come through a step again. Bare torchrun has its c10d rendezvous, and agents
that look for failures each 0.1 s, which is its default. The final losses of all must be those of a training that
nothing interrupted, to the last digit. Besides, so many gangs without restarts are killed so and started again as
@retry does it, as soon as all tasks have ended: no queue and no image to wait for. The limit, at most half of bare
torchrun's time, is for the medians; the exit code says whether it was kept.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.hosts import Hosts
from support.remote import RemoteGang, remote_gang

SCRIPT = Path(__file__).resolve().parent / "restarts_train.py"

NODES, RANKS = 4, 8

TIMEOUT_S = 300

LIMIT = 0.5

STORE_OF_ITS_OWN = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""For bare torchrun, which does not come back without: agents that notice the failure of another one's rank, and not of
one of theirs, do not count it as a restart, and their ranks then find the keys of the first try in the agents' store.
"""

FLOW = """
import os
from metaflow import FlowSpec, current, step, torchrun

class Training(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @torchrun(nproc_per_node=2, restarts=int(os.environ.get("RESTARTS", "3")))
    @step
    def work(self):
        current.torch.run(entrypoint=os.environ["SCRIPT"])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Training()
"""


class Result:
    """What the ranks have written into ``folder``.

    Attributes
    ----------
    loss : str
        The final one, in hexadecimal.
    stood_still : float
        Seconds from the kill to the moment at which all ranks had come through a step again; 0.0 without a kill.
    parts : list of float
        Seconds from the kill until the last rank had imported torch, from then on until all had met, and from then on.
    """

    def __init__(self, folder: Path) -> None:
        self.loss = (folder / "loss").read_text()
        killed = folder / "killed"
        self.stood_still, self.parts = 0.0, [0.0]
        if killed.exists():
            since = float(killed.read_text())
            ranks = [_last_try(folder / f"moments-{rank}") for rank in range(RANKS)]
            last = [since, *(max(rank[part] for rank in ranks) for part in range(3))]
            self.parts = [after - before for before, after in itertools.pairwise(last)]
            self.stood_still = sum(self.parts)


def _last_try(moments: Path) -> list[float]:
    """When a rank of the last try had imported torch, had met the others, and came through its first step."""
    found = [line.split() for line in moments.read_text().splitlines()]
    last_try = found[-1][1]
    return [float(at) for _, pid, at in found if pid == last_try][:3]


def environment(folder: Path, training: str) -> dict[str, str]:
    """Which training it is, where it finds the scans, and leaves what it has to say."""
    return {"BENCHMARK_FOLDER": str(folder), "DIGITS": str(folder.parent / "digits.pt"), "TRAINING": training}


def in_a_gang(gang: RemoteGang, attempts: Iterator[int], folder: Path, training: str, kill: bool) -> Result:
    """One training in a gang; each has an attempt of its own, as after a retry."""
    env = {"SCRIPT": str(SCRIPT), **environment(folder, training), **({"KILL": "1"} if kill else {})}
    for task in gang.start_all(attempt=next(attempts), **env):
        task.ok(TIMEOUT_S)
    return Result(folder)


def retried(gang: RemoteGang, attempts: Iterator[int], folder: Path, training: str) -> Result:
    """One in a gang without restarts, all of whose tasks are started once more."""
    env = {"SCRIPT": str(SCRIPT), **environment(folder, training), "KILL": "1", "RESTARTS": "0"}
    for task in gang.start_all(attempt=next(attempts), **env):
        task.fails(TIMEOUT_S)
    for task in gang.start_all(attempt=next(attempts), **env):
        task.ok(TIMEOUT_S)
    return Result(folder)


def bare(hosts: Hosts, folder: Path, training: str) -> Result:
    """One under torchrun's agents alone."""
    env = {**os.environ, **environment(folder, training), "KILL": "1", "OMP_NUM_THREADS": "1", **STORE_OF_ITS_OWN}
    agents = []
    for index in range(NODES):
        argv = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(NODES), "--nproc_per_node", "2"]
        argv += ["--max-restarts", "3", "--rdzv_backend", "c10d", "--rdzv_id", folder.name]
        # Without these it would look for addresses by the hosts' names, which are no names of a network.
        argv += ["--rdzv_endpoint", f"{hosts[0].address}:29500", "--local_addr", hosts[index].address]
        argv += ["--rdzv_conf", f"is_host={int(index == 0)}", str(SCRIPT)]
        with open(folder / f"agent-{index}.log", "wb") as log:
            agents.append(hosts[index].popen(argv, env=env, cwd=folder, stdout=log, stderr=subprocess.STDOUT))
    deadline = time.monotonic() + TIMEOUT_S
    try:
        codes = [agent.wait(max(0.0, deadline - time.monotonic())) for agent in agents]
    except subprocess.TimeoutExpired:
        codes = [-1]
    if any(codes):
        logs = [(folder / f"agent-{index}.log").read_text()[-2000:] for index in range(NODES)]
        raise SystemExit("bare torchrun did not end well:\n" + "\n----\n".join(logs))
    return Result(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--retries", type=int, default=1)
    parser.add_argument("--training", choices=("digits", "gpt"), default="digits")
    arguments = parser.parse_args()
    pairs, training = arguments.pairs, arguments.training
    ours, theirs, again, failures = [], [], [], 0
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
        torch.save((images.float() / 16, labels), base / "digits.pt")

        def folder(kind: str) -> Path:
            path = base / kind
            path.mkdir()
            return path

        def check(who: str, result: Result) -> bool:
            """Whether the loss is another one, which is printed."""
            if result.loss != wanted:
                print(f"     the final loss of {who} is {float.fromhex(result.loss)!r}")
            return result.loss != wanted

        gang, attempts = stack.enter_context(remote_gang(folder("tasks"), FLOW, NODES)), itertools.count()
        wanted = in_a_gang(gang, attempts, folder("undisturbed"), training, kill=False).loss
        print(f"{training}; final loss of a training that nothing interrupts: {float.fromhex(wanted)!r}")
        print(
            f"{'pair':>4}{'bare':>9}{'gang':>9}  gang/bare (seconds from the kill to the next step of all ranks; "
            "of each: until torch is imported + until all have met + until all have made a step)"
        )
        for pair in range(1, pairs + 1):
            without = bare(gang.hosts, folder(f"bare-{pair}"), training)
            found = without, in_a_gang(gang, attempts, folder(f"gang-{pair}"), training, kill=True)
            times = [one.stood_still for one in found]
            theirs.append(times[0])
            ours.append(times[1])
            parts = "; ".join(" + ".join(f"{part:.2f}" for part in one.parts) for one in found)
            print(f"{pair:4}{times[0]:9.2f}{times[1]:9.2f}  {times[1] / times[0]:.2f}  {parts}", flush=True)
            for who, one in zip(("bare", "gang"), found, strict=True):
                failures += check(who, one)
                shutil.rmtree(base / f"{who}-{pair}")
        for number in range(1, arguments.retries + 1):
            with remote_gang(folder(f"tasks-{number}"), FLOW, NODES) as other:  # Metaflow counts six attempts of a task
                result = retried(other, itertools.count(), folder(f"retry-{number}"), training)
            failures += check("@retry", result)
            again.append(result.stood_still)
            print(f"@retry of the step: {result.stood_still:.2f} s", flush=True)
    ratio = statistics.median(ours) / statistics.median(theirs)
    if again:
        print(f"gang/@retry: {statistics.median(ours) / statistics.median(again):.2f}")
    print(f"medians {statistics.median(theirs):.2f} s and {statistics.median(ours):.2f} s: {ratio:.2f}, limit {LIMIT}")
    sys.exit(bool(failures) or ratio > LIMIT)


if __name__ == "__main__":
    main()

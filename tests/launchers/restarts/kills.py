"""Many failures, one after the other, in one training on hosts with a network between them; it has to end well.

    python tests/launchers/restarts/kills.py [--kills 100] [--seed 7] [--spares 4]

Four hosts have two ranks each, and further hosts are spares. A random generator of the seed chooses what fails, who and
when: a rank is killed, or is stopped, or hangs, so that the others wait for it; a host loses power. The moments are
between the line that tells the restart before and some seconds after it, so that ranks are struck while they start as
well; half of them are after the first step of a try. Each restart has to be told with the right rank and cause; the
losses of all steps, of each try, have to be those of a training that nothing interrupts, to the last digit; and nothing
may be left on the hosts.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from support.processes import Process, own_pid, send_signal
from support.remote import RemoteGang, remote_gang

NODES, PER_NODE = 4, 2

STALL_S = 10.0
"""``stall_timeout`` of the step."""

START_DELAY_S, STEP_DELAY_S = 6.0, 2.0
"""The longest time from the line about a restart, or from the first step after it, to the next failure."""

HOSTS_SHARE = 0.4
"""Of the failures, those that are a host's, while a spare one is left."""

HANGS_SHARE, STOPS_SHARE = 0.2, 0.1
"""Of the others, those that are no kills."""

STEP_S = 0.02
"""Between two looks for a file, which raises no event."""

TOLD_S = 90.0
"""For the line about a restart, on a machine that is busy."""

FLOW = f"""
import os
from metaflow import FlowSpec, current, step, torchrun

class Kills(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @torchrun(nproc_per_node={PER_NODE}, restarts=1000, spares=SPARES, stall_timeout={STALL_S:g})
    @step
    def work(self):
        current.torch.run(entrypoint="kills_train.py")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Kills()
"""

TRAIN = """
import os, signal, time
import torch, torch.distributed as dist
from metaflow import gang_log

folder, rank, size = os.environ["FOLDER"], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

def hang(number, frame):
    time.sleep(1000)

signal.signal(signal.SIGUSR2, hang)
with open(f"{folder}/rank-{rank}.new", "w") as file:
    file.write(f"{os.environ['GANG_RESTART']} {os.getpid()} {os.uname().nodename}")
os.replace(file.name, f"{folder}/rank-{rank}")

torch.set_num_threads(1)
torch.manual_seed(0)
dist.init_process_group("gloo")
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
first, checkpoint = 0, f"{folder}/checkpoint.pt"
if os.path.exists(checkpoint):
    saved = torch.load(checkpoint)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    first = saved["step"] + 1
losses = os.open(f"{folder}/losses", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
last = int(os.environ.get("STEPS", "1000000"))
for step in range(first, last):
    data = torch.rand(size, 16, 8, generator=torch.Generator().manual_seed(step))[rank]
    loss = torch.nn.functional.mse_loss(model(data), data.sum(1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= size
    optimizer.step()
    # The last number is how many ranks have seen that this is enough.
    whole = torch.tensor([loss.item(), float(os.path.exists(f"{folder}/enough"))], dtype=torch.float64)
    dist.all_reduce(whole)
    if rank == 0:
        os.write(losses, f"{step} {float(whole[0]).hex()}\\n".encode())
    if rank == 0 and step % 5 == 4:
        state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, checkpoint + ".new")
        os.replace(checkpoint + ".new", checkpoint)
    gang_log(step, loss=whole[0].item() / size)
    if whole[1] == size:
        break
    if "STEPS" not in os.environ:
        time.sleep(0.05)
dist.barrier()
dist.destroy_process_group()
"""


@dataclass(frozen=True)
class Rank:
    """A rank of the newest try, and the node that it is on."""

    number: int
    process: Process
    node: int

    def __str__(self) -> str:
        return f"rank {self.number} on node {self.node} (gang{self.node})"


@dataclass(frozen=True)
class Struck:
    """One failure: what was done, and the regular expression of what its restart has to tell."""

    what: str
    told: str


class Training:
    """The training on the hosts of ``gang``, and what is done to it.

    Parameters
    ----------
    folder : path
        Where ranks leave their process ids, losses and checkpoint.

    Attributes
    ----------
    told : list of str
        Node 0's lines about restarts, as far as they were waited for.
    """

    def __init__(self, gang: RemoteGang, folder: Path, chance: random.Random) -> None:
        self._gang, self._folder, self._chance = gang, folder, chance
        self._tasks = gang.start_all(FOLDER=str(folder))
        self._lost: set[int] = set()
        self._size = 0  # of the file of losses, when the last restart was told
        self.told: list[str] = []

    def strike(self) -> Struck:
        """Do one thing to a rank, or to a host while a spare one is left, at a random moment of the newest try."""
        if self._chance.random() < 0.5:
            self._wait_for_a_step()
            time.sleep(self._chance.uniform(0.0, STEP_DELAY_S))
        else:
            time.sleep(self._chance.uniform(0.0, START_DELAY_S))
        rank = self._rank(self._chance.randrange(NODES * PER_NODE))
        if self._chance.random() < HOSTS_SHARE and rank.node and self._has_spare():
            self._gang.kill_host(rank.node)
            self._lost.add(rank.node)
            return Struck(f"host {rank.node} loses power", rf"node {rank.node} \(gang{rank.node}\) was lost: ")
        draw = self._chance.random()
        if draw < HANGS_SHARE:
            assert send_signal(rank.process, signal.SIGUSR2)
            return Struck(f"{rank} hangs", rf"\brank {rank.number}\b.* in hang at ")
        if draw < HANGS_SHARE + STOPS_SHARE:
            assert send_signal(rank.process, signal.SIGSTOP)
            return Struck(f"{rank} is stopped", re.escape(f"{rank} ") + ".*stopped")
        assert send_signal(rank.process, signal.SIGKILL)
        return Struck(f"{rank} is killed", re.escape(f"{rank} was killed by SIGKILL"))

    def _wait_for_a_step(self) -> None:
        """Wait until rank 0 has told the loss of a step of the newest try."""
        path, deadline = self._folder / "losses", time.monotonic() + TOLD_S
        while not path.exists() or path.stat().st_size <= self._size:
            assert time.monotonic() < deadline, f"no step in try {len(self.told)}: {self._tasks[0].dump()}"
            time.sleep(STEP_S)

    def _rank(self, number: int) -> Rank:
        """A rank of the newest try, once it is there."""
        deadline = time.monotonic() + TOLD_S
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                of_try, pid, host = (self._folder / f"rank-{number}").read_text().split()
                node = int(host.removeprefix("gang"))
                if int(of_try) == len(self.told):
                    for process in self._gang.hosts[node].processes():
                        if own_pid(process.pid) == int(pid):
                            return Rank(number, process, node)
            time.sleep(STEP_S)
        raise AssertionError(f"rank {number} is not there in try {len(self.told)}: {self._tasks[0].dump()}")

    def _has_spare(self) -> bool:
        """Whether a node still waits: neither lost, nor left out, nor in the place of such a one."""
        used = sum(len(re.findall(r"\bnode \d+ takes", line)) for line in self.told)
        return used < self._gang.num_nodes - NODES

    def restarted(self, struck: Struck) -> None:
        """Insist that the next restart tells what was done."""
        number = len(self.told) + 1
        found = self._tasks[0].wait_for(re.compile(rf"\[gang\] (restart {number} of .*)"), TOLD_S)
        self.told.append(found[1])
        self._size = losses.stat().st_size if (losses := self._folder / "losses").exists() else 0
        assert re.search(struck.told, found[1]), f"{struck.what}: /{struck.told}/ is not told: {found[1]}"

    def finish(self) -> list[str]:
        """Have it end, and well; the steps and losses of all tries."""
        (self._folder / "enough").touch()
        for node, task in enumerate(self._tasks):
            if node not in self._lost:
                task.ok(TOLD_S)
        return (self._folder / "losses").read_text().splitlines()


def undisturbed(folder: Path, steps: int) -> dict[int, str]:
    """The losses of a training of so many steps that nothing interrupts."""
    (folder / "kills_train.py").write_text(TRAIN)
    with remote_gang(folder, FLOW.replace("SPARES", "0"), NODES) as gang:
        for task in gang.start_all(FOLDER=str(folder), STEPS=str(steps)):
            task.ok(TOLD_S + steps * 0.1)
    return dict(map(_loss, (folder / "losses").read_text().splitlines()))


def _loss(line: str) -> tuple[int, str]:
    step, loss = line.split()
    return int(step), loss


def many(folder: Path, kills: int, seed: int, spares: int) -> None:
    """Strike ``kills`` times; AssertionError where something is not as it has to be."""
    chance = random.Random(seed)
    disturbed, whole = folder / "disturbed", folder / "undisturbed"
    disturbed.mkdir()
    whole.mkdir()
    (disturbed / "kills_train.py").write_text(TRAIN)
    with remote_gang(disturbed, FLOW.replace("SPARES", str(spares)), NODES + spares) as gang:
        training = Training(gang, disturbed, chance)
        for number in range(1, kills + 1):
            struck = training.strike()
            since = time.monotonic()
            training.restarted(struck)
            print(f"{number:4d} {struck.what}; told after {time.monotonic() - since:.1f} s", flush=True)
            print(f"     {training.told[-1]}", flush=True)
        lines = training.finish()
    losses = [_loss(line) for line in lines]
    last = max(step for step, _ in losses)  # the last try may have ended before it came that far again
    wanted = undisturbed(whole, last + 1)
    wrong = [(step, loss) for step, loss in losses if wanted[step] != loss]
    assert not wrong, f"other losses than without a failure: {wrong[:3]}"
    assert {step for step, _ in losses} == set(range(last + 1)), "steps are missing"
    print(f"{kills} failures, {last + 1} steps, {len(losses) - last - 1} of them done again; all losses are the same")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--spares", type=int, default=4)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        many(Path(name), arguments.kills, arguments.seed, arguments.spares)
    print(f"seed {arguments.seed}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()

"""The training of restarts.py: digits on the CPU, the same to the last digit whatever happens in between.

It saves each ten steps and goes on from there; a step takes a while, so that a training lasts longer than what is
measured of it. Rank 5 kills itself once, at step 200, where KILL says so. Each rank writes down when it has come to a
step: "STEP PID SECONDS".
"""

from __future__ import annotations

import os
import signal
import time

import torch
import torch.distributed as dist
from torch import nn

STEPS, KILL_AT, SAVE_EACH, BATCH, STEP_S = 205, 200, 10, 16, 0.15
BEGUN, MET = -2, -1
"""In the place of a step: torch is imported, and all ranks have met."""

FOLDER = os.environ["BENCHMARK_FOLDER"]
RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def data_of(step: int, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's part of the batch of a step, whatever came before."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(step))
    mine = order[RANK * BATCH : (RANK + 1) * BATCH]
    return images[mine], labels[mine]


def main() -> None:
    """What is started in each rank."""
    moments = os.open(f"{FOLDER}/moments-{RANK}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(step: int) -> None:
        os.write(moments, f"{step} {os.getpid()} {time.time()!r}\n".encode())

    note(BEGUN)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    note(MET)
    images, labels = torch.load(os.environ["DIGITS"])
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    first, checkpoint = 0, f"{FOLDER}/checkpoint.pt"
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"] + 1
    for step in range(first, STEPS):
        if step == KILL_AT and RANK == 5 and os.environ.get("KILL") and not os.path.exists(f"{FOLDER}/killed"):
            with open(f"{FOLDER}/killed", "w") as file:
                file.write(repr(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        inputs, targets = data_of(step, images, labels)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        for parameter in model.parameters():
            # DDP arranges its buckets anew after its first step, so that the sum of that one has other last digits.
            dist.all_reduce(parameter.grad)
            parameter.grad /= SIZE
        optimizer.step()
        time.sleep(STEP_S)
        note(step)
        if RANK == 0 and step % SAVE_EACH == SAVE_EACH - 1:
            state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, f"{checkpoint}.new")
            os.replace(f"{checkpoint}.new", checkpoint)
    total = loss.detach().clone()
    dist.all_reduce(total)
    if RANK == 0:
        with open(f"{FOLDER}/loss", "w") as file:
            file.write(float(total / SIZE).hex())
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""The training of restarts.py on the CPU, of digits or of a small GPT, the same to the last digit whatever happens.

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

TEXT = "a gang is the nodes of one step: they meet, they work together, and they end together. "
LETTERS = sorted(set(TEXT))
CONTEXT, WIDTH = 32, 64
"""Of the GPT: how many letters it sees, and the width of its layers."""

FOLDER = os.environ["BENCHMARK_FOLDER"]
RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Digits:
    """A perceptron, and scans of handwritten digits."""

    def __init__(self) -> None:
        self._images, self._labels = torch.load(os.environ["DIGITS"])
        self.model: nn.Module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def loss(self, step: int) -> torch.Tensor:
        """Of this rank's part of the batch of a step, whatever came before."""
        order = torch.randperm(len(self._images), generator=torch.Generator().manual_seed(step))
        mine = order[RANK * BATCH : (RANK + 1) * BATCH]
        return nn.functional.cross_entropy(self.model(self._images[mine]), self._labels[mine])


class Gpt:
    """A transformer of two layers, and a sentence."""

    def __init__(self) -> None:
        self._text = torch.tensor([LETTERS.index(letter) for letter in TEXT * 8])
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0, batch_first=True, norm_first=True)
        blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        parts = (nn.Embedding(len(LETTERS), WIDTH), nn.Embedding(CONTEXT, WIDTH), nn.Linear(WIDTH, len(LETTERS)))
        self.model: nn.Module = nn.ModuleList([*parts, blocks])

    def loss(self, step: int) -> torch.Tensor:
        """As :meth:`Digits.loss`."""
        letters, places, head, blocks = self.model  # type: ignore[misc]
        chance = torch.Generator().manual_seed(step)
        starts = torch.randint(len(self._text) - CONTEXT - 1, (SIZE, BATCH), generator=chance)[RANK]
        batch = torch.stack([self._text[start : start + CONTEXT + 1] for start in starts])
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        out = head(blocks(letters(batch[:, :-1]) + places(torch.arange(CONTEXT)), mask=mask, is_causal=True))
        return nn.functional.cross_entropy(out.flatten(0, 1), batch[:, 1:].flatten())


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
    training = {"digits": Digits, "gpt": Gpt}[os.environ["TRAINING"]]()
    model = training.model
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
        optimizer.zero_grad()
        loss = training.loss(step)
        loss.backward()
        # DDP arranges its buckets anew after its first step, so that the sum of that one has other last digits.
        gradients = [parameter.grad for parameter in model.parameters()]
        total = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(total)
        for gradient, mean in zip(gradients, (total / SIZE).split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
        optimizer.step()
        time.sleep(STEP_S)
        note(step)
        if RANK == 0 and step % SAVE_EACH == SAVE_EACH - 1:
            state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, f"{checkpoint}.new")
            os.replace(f"{checkpoint}.new", checkpoint)
    last = loss.detach().clone()
    dist.all_reduce(last)
    if RANK == 0:
        with open(f"{FOLDER}/loss", "w") as file:
            file.write(float(last / SIZE).hex())
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

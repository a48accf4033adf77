"""Trains a small network on scikit-learn's 1,797 scans of handwritten digits, in as many processes as there are ranks.

An ordinary PyTorch script that knows nothing of Metaflow; digits.py runs it on two nodes. By hand:

    torchrun --nproc_per_node 2 examples/torchrun/train_digits.py --epochs 20 --model model.pt --checkpoint digits.ckpt
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

RANK = int(os.environ.get("RANK", "0"))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", "0"))


def digits() -> tuple[TensorDataset, TensorDataset]:
    """1,437 scans to train on and 360 to test with, the same in every process."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    train_x, test_x, train_y, test_y = (torch.tensor(part) for part in split)
    return TensorDataset(train_x.float() / 16, train_y), TensorDataset(test_x.float() / 16, test_y)


def build_model() -> nn.Module:
    """Two layers are enough for 8 x 8 pixels."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def accuracy(state: dict[str, torch.Tensor]) -> float:
    """The share of the test scans that a model with these weights names rightly."""
    model = build_model()
    model.load_state_dict(state)
    images, labels = digits()[1].tensors
    with torch.no_grad():
        return (model(images).argmax(dim=1) == labels).float().mean().item()


@contextlib.contextmanager
def process_group() -> Iterator[tuple[torch.device, dist.ProcessGroup | None]]:
    """All ranks, joined: the device of this one, and the group for its gradients (None: the default one, over gloo).

    NCCL needs a GPU for each rank, so all must have one before any uses it; that is agreed on over gloo.
    """
    dist.init_process_group("gloo")
    has_gpu = torch.tensor([int(torch.cuda.device_count() > LOCAL_RANK)])
    dist.all_reduce(has_gpu, op=dist.ReduceOp.MIN)
    device, group = torch.device("cpu"), None
    if has_gpu.item():
        device = torch.device("cuda", LOCAL_RANK)
        torch.cuda.set_device(device)
        group = dist.new_group(backend="nccl")
    yield device, group
    # No rank leaves while another may still need it: rank 0 holds the store through which they found each other.
    # After a failure there is no one to wait for, so this is not in a `finally`.
    dist.barrier()
    dist.destroy_process_group()


def save_atomically(value: object, path: str) -> None:
    """Write a whole file or none: a process that is killed meanwhile leaves the previous checkpoint as it was."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    torch.save(value, path + ".new")
    os.replace(path + ".new", path)


def fit(epochs: int, batch_size: int, checkpoint: str) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train in this rank, together with the others; return the weights and this rank's loss for each epoch.

    Continues from ``checkpoint`` where rank 0 finds one there.
    """
    torch.set_num_threads(1)  # the processes share the machine's cores
    with process_group() as (device, group):
        torch.manual_seed(0)
        model = DistributedDataParallel(build_model().to(device), process_group=group)
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)  # half the bytes on the wire
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        train = digits()[0]
        sampler = DistributedSampler(train)
        batches = DataLoader(train, batch_size=batch_size, sampler=sampler)

        # Only rank 0 reads the checkpoint, so that the others need not reach it; all get what it found.
        found = [None]
        if RANK == 0 and os.path.exists(checkpoint):
            found = [torch.load(checkpoint, map_location="cpu", weights_only=True)]
        dist.broadcast_object_list(found, src=0)
        first = 0
        if found[0] is not None:
            first = found[0]["epoch"] + 1
            model.module.load_state_dict(found[0]["model"])
            optimizer.load_state_dict(found[0]["optimizer"])
            if RANK == 0:
                print(f"resuming after epoch {found[0]['epoch']}", flush=True)

        losses = []
        for epoch in range(first, epochs):
            sampler.set_epoch(epoch)  # another shuffle each time, the same on all ranks
            total = 0.0
            for images, labels in batches:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
                loss.backward()
                optimizer.step()
                total += loss.item()
            losses.append(total / len(batches))
            if RANK == 0:
                state = {"epoch": epoch, "model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
                save_atomically(state, checkpoint)
                print(f"epoch {epoch}: loss {losses[-1]:.4f}", flush=True)
        return {name: tensor.cpu() for name, tensor in model.module.state_dict().items()}, losses


def main() -> None:
    """What torchrun starts in each rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--checkpoint", required=True, help="file that rank 0 writes after each epoch")
    parser.add_argument("--model", required=True, help="file that rank 0 writes the weights to")
    parser.add_argument("--losses", help="folder where each rank leaves rank<N>.json")
    args = parser.parse_args()
    weights, losses = fit(args.epochs, args.batch_size, args.checkpoint)
    if RANK == 0:
        save_atomically(weights, args.model)
    if args.losses:
        with open(os.path.join(args.losses, f"rank{RANK}.json"), "w") as file:
            json.dump(losses, file)


if __name__ == "__main__":
    main()

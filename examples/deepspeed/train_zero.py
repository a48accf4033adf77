"""Trains a small network on scikit-learn's 1,797 scans of handwritten digits by DeepSpeed, with ZeRO stage 1, 2 or 3.

An ordinary DeepSpeed script that knows nothing of Metaflow; digits.py runs it on two nodes. Every rank writes its part
of the checkpoint, and a later run of the same ``--checkpoints`` folder goes on from it. By hand:

    deepspeed --num_gpus 2 train_zero.py --deepspeed --deepspeed_config ds.json --checkpoints ckpt --model model.pt
"""

from __future__ import annotations

import argparse
import json
import os

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

RANK = int(os.environ.get("RANK", "0"))


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


def whole_weights(engine: deepspeed.DeepSpeedEngine) -> dict[str, torch.Tensor]:
    """The model's weights on rank 0: under stage 3 each rank holds a part of each, and all come together for this."""
    weights = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            weights[name] = parameter.detach().float().cpu().clone()
    return weights


def main() -> None:
    """What DeepSpeed starts in each rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--local_rank", type=int, default=0, help="DeepSpeed's launcher gives it")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--checkpoints", required=True, help="folder that every node reaches")
    parser.add_argument("--model", required=True, help="file that rank 0 writes the weights to")
    parser.add_argument("--fail_after", type=int, default=-1, help="raise an exception after this epoch")
    parser = deepspeed.add_config_arguments(parser)
    args = parser.parse_args()

    torch.set_num_threads(1)  # the processes share the machine's cores
    torch.manual_seed(0)
    deepspeed.init_distributed()
    model = build_model()
    engine, _, _, _ = deepspeed.initialize(args=args, model=model, model_parameters=model.parameters())
    train = digits()[0]
    sampler = DistributedSampler(train)
    batches = DataLoader(train, batch_size=engine.train_micro_batch_size_per_gpu(), sampler=sampler)

    first = 0
    if os.path.exists(os.path.join(args.checkpoints, "latest")):
        _, state = engine.load_checkpoint(args.checkpoints)
        first = state["epoch"] + 1
        if RANK == 0:
            print(f"resuming after epoch {state['epoch']}", flush=True)
    device = get_accelerator().current_device_name()
    for epoch in range(first, args.epochs):
        sampler.set_epoch(epoch)  # another shuffle each time, the same on all ranks
        for images, labels in batches:
            loss = nn.functional.cross_entropy(engine(images.to(device)), labels.to(device))
            engine.backward(loss)
            engine.step()
        engine.save_checkpoint(args.checkpoints, tag=f"epoch-{epoch}", client_state={"epoch": epoch})
        if RANK == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}", flush=True)
        if epoch == args.fail_after:
            raise RuntimeError(f"asked to fail after epoch {epoch}")
    weights = whole_weights(engine)
    if RANK == 0:
        torch.save(weights, args.model)
        print(json.dumps({"accuracy": accuracy(weights)}), flush=True)


if __name__ == "__main__":
    main()

"""Trains a small network on scikit-learn's 1,797 scans of handwritten digits with PyTorch and Horovod.

An ordinary Horovod script that knows nothing of Metaflow; horovod_digits.py runs it on two nodes. By hand:

    horovodrun -np 2 python examples/mpi/horovod_train.py --epochs 20 --model model.pt
"""

from __future__ import annotations

import argparse

import horovod.torch as hvd
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn


def digits() -> list[torch.Tensor]:
    """1,437 scans to train on and 360 to test with, then the labels of both; the same in every rank."""
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    return [torch.tensor(part) for part in (train_x / 16, test_x / 16, train_y, test_y)]


def main() -> None:
    """What runs in each rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--model", required=True, help="file that rank 0 writes the weights and the accuracy to")
    args = parser.parse_args()

    hvd.init()
    torch.set_num_threads(1)  # the processes share the machine's cores
    device = torch.device("cpu")
    if torch.cuda.device_count() > hvd.local_rank():
        device = torch.device("cuda", hvd.local_rank())
    torch.manual_seed(hvd.rank())  # other first weights in each rank, until rank 0's are broadcast
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())

    train_x, test_x, train_y, test_y = digits()
    # As many in each rank, so that all take as many steps.
    share = len(train_x) // hvd.size()
    for epoch in range(args.epochs):
        # The same shuffle in all ranks, of which each takes its share.
        order = torch.randperm(len(train_x), generator=torch.Generator().manual_seed(epoch))
        mine = order[hvd.rank() * share : (hvd.rank() + 1) * share]
        for batch in mine.split(args.batch_size):
            optimizer.zero_grad()
            images, labels = train_x[batch].float().to(device), train_y[batch].to(device)
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        mean = hvd.allreduce(loss.detach(), name="loss")
        if hvd.rank() == 0:
            print(f"epoch {epoch}: loss {mean.item():.4f}", flush=True)

    # Each rank tests with its share of the scans, and all learn the whole.
    tests = slice(hvd.rank(), None, hvd.size())
    with torch.no_grad():
        right = (model(test_x[tests].float().to(device)).argmax(dim=1).cpu() == test_y[tests]).sum()
    accuracy = hvd.allreduce(right, op=hvd.Sum, name="right").item() / len(test_y)
    if hvd.rank() == 0:
        weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        torch.save({"weights": weights, "accuracy": accuracy, "ranks": hvd.size()}, args.model)
    hvd.shutdown()


if __name__ == "__main__":
    main()

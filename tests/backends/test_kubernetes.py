"""Flows through ``run --with kubernetes``: Metaflow's own JobSets, meant as Kubernetes means them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)

import metaflow_extensions.gang.core

from .kubernetes.place import KubernetesPlace
from .kubernetes.place import kubernetes as kubernetes
from .workplace import RUN_S, result
from .workplace import image as image

FLOW = """
import json, os, pathlib
from metaflow import FlowSpec, current, step, torchrun

class Digits(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=3)

    @torchrun
    @step
    def train(self):
        from train import train
        self.found = current.torch.run(entrypoint=train)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.found = inputs[0].found
        self.next(self.end)

    @step
    def end(self):
        import metaflow_extensions.gang.core
        extensions = pathlib.Path(metaflow_extensions.gang.core.__file__).parents[2]
        ours = [str(path.relative_to(extensions)) for path in extensions.rglob("*") if path.suffix not in ("", ".pyc")]
        print("RESULT", json.dumps([self.found, ours, os.listdir()]))

if __name__ == "__main__":
    Digits()
"""

TRAIN = """
import os, socket, sys

def train(epochs=30):
    import torch
    import torch.distributed as dist
    from sklearn.datasets import load_digits
    from torch import nn

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    scans, names = load_digits(return_X_y=True)
    scans, names = torch.tensor(scans, dtype=torch.float32) / 16, torch.tensor(names)
    model = nn.parallel.DistributedDataParallel(nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(scans[rank:1500:world]), names[rank:1500:world]).backward()
        optimizer.step()
    right = (model(scans[1500:]).argmax(1) == names[1500:]).float().mean().item()
    dist.destroy_process_group()
    return {"rank": rank, "world": world, "host": socket.gethostname(), "right": right}
"""


def test_digits_are_learned_on_pods_that_come_one_after_the_other(kubernetes: Callable[..., KubernetesPlace]) -> None:
    place = kubernetes(3, apart=2.0, names_after=3.0)
    run = place.run(FLOW, "--with", "kubernetes", train=TRAIN)
    run.ok(RUN_S)
    found, ours, beside = result(run)
    assert [(one["rank"], one["world"]) for one in found] == [(0, 3), (1, 3), (2, 3)], run.story()
    (jobset,) = place.cluster.jobsets
    domains = [f"{jobset}-{pod}-0.{jobset}.default.svc.cluster.local" for pod in ("control-0", "worker-0", "worker-1")]
    assert [one["host"] for one in found] == domains
    assert all(one["right"] > 0.85 and one["right"] == found[0]["right"] for one in found)
    # The code package has all of ours and nothing else; Metaflow itself has put a file above it.
    installed = Path(metaflow_extensions.gang.core.__file__).parents[2]
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.suffix not in ("", ".pyc")}
    assert set(ours) - {"__init__.py"} == files
    assert {"flow.py", "train.py"} == {name for name in beside if name.endswith(".py")}

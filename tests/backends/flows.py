"""The flows that every backend runs."""

from __future__ import annotations

DIGITS = """
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
        from metaflow import Run, namespace
        from metaflow.cards import get_cards
        from metaflow.plugins.cards.exception import CardNotPresentException

        namespace(None)
        cards = {}
        for task in Run(f"{current.flow_name}/{current.run_id}")["train"].tasks():
            try:
                cards[task.id] = [[card.type, card.get()] for card in get_cards(task)]
            except CardNotPresentException:
                cards[task.id] = []
        extensions = pathlib.Path(metaflow_extensions.gang.core.__file__).parents[2]
        ours = [str(path.relative_to(extensions)) for path in extensions.rglob("*") if path.suffix not in ("", ".pyc")]
        print("RESULT", json.dumps([self.found, ours, os.listdir(), cards]))

if __name__ == "__main__":
    Digits()
"""

TRAIN = """
import socket

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
"""Lies beside ``DIGITS`` as train.py."""

AT_WORK = "AT WORK"
SAVED = "SAVED"

FAILS = f"""
import json, os, threading
from metaflow import BACKEND, FlowSpec, current, gang, retry, step

# The flow is loaded anew for every task; only the first attempt's may give up waiting on a machine that is busy.
PATIENCE_S = FIRST_PATIENCE if os.environ.get("MF_ATTEMPT") == "0" else 600

class Fails(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @retry(times=1, minutes_between_retries=0)
    @BACKEND
    @gang(all_nodes_started_timeout=PATIENCE_S)
    @step
    def work(self):
        current.gang.on_preemption(lambda: print("{SAVED}", flush=True))
        self.met = current.gang.all_gather([current.retry_count, current.gang.node_index])
        print("{AT_WORK}", flush=True)
        if current.retry_count == 0:
            threading.Event().wait()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.met = [one.met for one in inputs]
        self.next(self.end)

    @step
    def end(self):
        print("RESULT", json.dumps(self.met))

if __name__ == "__main__":
    Fails()
"""
"""A gang of two without a framework. The first attempt works until something befalls it, the second ends."""


def fails(first_patience: float = 600) -> str:
    """The flow that fails, whose first attempt waits so many seconds for its nodes."""
    return FAILS.replace("FIRST_PATIENCE", f"{first_patience:g}")


RETRIED = [[[1, 0], [1, 1]]] * 2
"""The result of a flow that failed once: the nodes that each node of the second attempt has met."""

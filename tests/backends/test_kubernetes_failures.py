"""What befalls pods: the run's end, its cause where the user reads it, and the second attempt, which succeeds."""

from __future__ import annotations

from collections.abc import Callable

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest

from .workplace import RUN_S, Workplace, result
from .workplace import kubernetes as kubernetes
from .workplace import torch_image as torch_image

FLOW = """
import json
from metaflow import FlowSpec, current, kubernetes, retry, step, torchrun

class Trains(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=3)

    @retry(times=1, minutes_between_retries=0)
    @kubernetes
    @torchrun(all_nodes_started_timeout=TIMEOUT)
    @step
    def train(self):
        from train import train
        self.found = current.torch.run(entrypoint=train, entrypoint_args={"ends": current.retry_count > 0})
        self.attempt = current.retry_count
        self.next(self.join)

    @step
    def join(self, inputs):
        self.found = [inputs[0].found, [one.attempt for one in inputs]]
        self.next(self.end)

    @step
    def end(self):
        print("RESULT", json.dumps(self.found))

if __name__ == "__main__":
    Trains()
"""

TRAIN = """
import itertools

def train(ends):
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.zeros(1)
    for turn in range(5) if ends else itertools.count():
        total += 1
        dist.all_reduce(total)
        if turn == 3:
            print("TRAINING", flush=True)
    dist.destroy_process_group()
    return int(total)
"""

NODES = ("control-0", "worker-0", "worker-1")
AFTER_RETRY = [[363] * 3, [1] * 3]


def flow(timeout: float = 600) -> str:
    return FLOW.replace("TIMEOUT", str(timeout))


def starts(place: Workplace) -> tuple[object, list[object]]:
    """A run whose three pods are all at work, and they."""
    run = place.run(flow(), train=TRAIN)
    return run, [place.pod(role, "TRAINING", run) for role in NODES]


def first_attempt(output: str) -> str:
    """What the user has read before the second attempt began."""
    before, found, _ = output.partition("Retrying task")
    return before if found else output


def test_a_worker_pod_that_is_killed_is_named_and_tried_again(kubernetes: Callable[..., Workplace]) -> None:
    place = kubernetes(3)
    run = place.run(flow(), train=TRAIN)
    pods = [place.pod(role, "TRAINING", run) for role in NODES]
    pods[2].container.kill()
    run.ok(RUN_S)
    print(run.output)
    for pod in pods:
        print(pod.name, pod.container.output)
    assert result(run) == AFTER_RETRY

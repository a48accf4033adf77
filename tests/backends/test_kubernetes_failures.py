"""What befalls pods: the run's end, its cause where the user reads it, and the second attempt, which succeeds."""

from __future__ import annotations

from collections.abc import Callable

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
from support.processes import environment_of, send_signal
from support.remote import RemoteTask
from support.requirements import require_tool

from .kubernetes.place import KubernetesPlace
from .kubernetes.place import kubernetes as kubernetes
from .kubernetes.pods import Pod
from .workplace import RUN_S, result
from .workplace import image as image

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

GONE_S = 30.0

NODES = ("control-0", "worker-0", "worker-1")
AFTER_RETRY = [[363] * 3, [1] * 3]


Kubernetes = Callable[..., KubernetesPlace]


def at_work(place: KubernetesPlace) -> tuple[RemoteTask, list[Pod]]:
    """A run whose three pods all train, and they."""
    run = place.run(FLOW.replace("TIMEOUT", "600"), train=TRAIN)
    return run, [place.pod(role, "TRAINING", run) for role in NODES]


def first_attempt(run: RemoteTask) -> str:
    """What the user has read when the second attempt begins, once that has succeeded."""
    run.ok(RUN_S)
    assert result(run) == AFTER_RETRY, run.story()
    before, retried, _ = run.output.partition("Task is starting (retry)")
    assert retried, run.story()
    return before


def test_a_killed_worker_pod_is_named_in_controls_log_before_the_jobset_ends_it(kubernetes: Kubernetes) -> None:
    run, pods = at_work(kubernetes(3))
    pods[2].container.kill()
    said = first_attempt(run)
    assert f"[gang] The first failure was on node 2 ({pods[2].domain})" in said
    assert "Worker pods failed" in said


def test_a_killed_control_pod_is_named_in_the_workers_own_logs(kubernetes: Kubernetes) -> None:
    place = kubernetes(3)
    run, pods = at_work(place)
    pods[0].container.kill()
    assert "control-pod failed" in first_attempt(run)
    control = pods[0].metadata["annotations"]["metaflow/control-task-id"]
    for worker in range(2):
        said = place.logs(run, f"train/{control}-worker-{worker}")
        assert "[gang] The first failure was on node 0" in said, said


def test_a_rank_that_is_killed_is_named_with_its_signal(kubernetes: Kubernetes) -> None:
    run, pods = at_work(kubernetes(3))
    (rank, *_) = pods[1].container.processes(lambda process: "RANK" in environment_of(process.pid))
    assert send_signal(rank, 9)
    said = first_attempt(run)
    assert f"[gang] The first failure was on node 1 ({pods[1].domain})" in said and "SIGKILL" in said, said


def test_a_lost_machine_is_noticed_long_before_kubernetes_does(kubernetes: Kubernetes) -> None:
    place = kubernetes(4)  # one to replace it
    run, pods = at_work(place)
    place.cluster.lose(pods[2])
    assert f"[gang] The first failure was on node 2 ({pods[2].domain})" in first_attempt(run)


def test_a_pod_that_never_comes_is_named(kubernetes: Kubernetes) -> None:
    place = kubernetes(3, metadata="local")
    place.cluster.unschedulable = lambda pod: pod.role == "worker-1" and pod.attempt == 0
    # The second attempt has to make it in this time, too, on a machine that other tests use.
    run = place.run(FLOW.replace("TIMEOUT", "30"), train=TRAIN)
    said = first_attempt(run)
    assert "[gang]" in said and "node 2" in said, said


def test_an_interrupted_run_leaves_no_pod(kubernetes: Kubernetes) -> None:
    require_tool("killall5", "sysvinit-utils")  # by which Metaflow ends what runs in a pod
    place = kubernetes(3)
    run, pods = at_work(place)
    run.interrupt()
    run.wait(RUN_S)
    for pod in pods:
        assert pod.container.wait(GONE_S) != 0
    assert len(place.cluster.history) == len(pods), run.story()

"""What is special to Kubernetes: pods and names that come when they come, and an end by exec."""

from __future__ import annotations

import re
from collections.abc import Callable

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.processes import send_signal
from support.requirements import require_tool

from .flows import AT_WORK
from .kubernetes.place import KubernetesPlace
from .kubernetes.place import kubernetes as kubernetes
from .workplace import RUN_S
from .workplace import bare_image as bare_image

FLOW = f"""
import sys
from metaflow import BACKEND, FlowSpec, current, gang, step

WAIT = "import sys, time; print('{AT_WORK} with', sys.argv[1:], flush=True); time.sleep(1000)"

class Works(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=NODES)

    @BACKEND
    @gang
    @step
    def work(self):
        current.gang.run([sys.executable, "-c", WAIT, *(node.hostname for node in current.gang.nodes)])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Works()
"""

GONE_S = 30.0

Kubernetes = Callable[..., KubernetesPlace]


@pytest.mark.big
def test_pods_that_come_one_after_the_other_meet_and_an_interrupt_leaves_none(kubernetes: Kubernetes) -> None:
    require_tool("killall5", "sysvinit-utils")  # by which Metaflow ends what runs in a pod
    place = kubernetes(3, apart=2.0, names_after=3.0)
    run = place.start(FLOW.replace("NODES", "3"))
    nodes = [place.node(index, AT_WORK, run) for index in range(3)]
    (jobset,) = place.cluster.jobsets
    domains = [f"{jobset}-{pod}-0.{jobset}.default.svc.cluster.local" for pod in ("control-0", "worker-0", "worker-1")]
    assert [node.hostname for node in nodes] == domains
    assert all(f"{AT_WORK} with {domains}" in node.output for node in nodes), run.dump()
    run.interrupt()
    run.wait(RUN_S)
    for node in nodes:
        assert node.wait(GONE_S) != 0
    assert len(place.cluster.history) == len(nodes), run.dump()


@pytest.mark.big
def test_a_killed_process_fails_the_jobset_and_is_named_with_its_signal(kubernetes: Kubernetes) -> None:
    place = kubernetes(2)
    run = place.start(FLOW.replace("NODES", "2"))
    nodes = [place.node(index, AT_WORK, run) for index in range(2)]
    (process,) = nodes[1].processes(lambda process: process.command[-1:] == (nodes[1].hostname,))
    assert send_signal(process, 9)
    said = run.fails(RUN_S)
    cause = rf"\[gang\] The first failure was on node 1 \({re.escape(nodes[1].hostname)}\).*SIGKILL"
    assert re.search(cause, said, re.DOTALL), said
    assert re.search("(control-pod|Worker pods) failed", said), said  # Metaflow's words: the JobSet has

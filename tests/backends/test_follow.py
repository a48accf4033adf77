"""``metaflow-gang logs --follow`` and ``why`` of a gang on a cluster, from the user's machine."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.processes import send_signal
from support.remote import RemoteTask
from support.requirements import require_packages

from .flows import AT_WORK
from .image import FOR_S3, Image
from .kubernetes.place import KubernetesPlace
from .kubernetes.place import kubernetes as kubernetes
from .workplace import RUN_S

COMMAND = str(Path(sys.executable).with_name("metaflow-gang"))

FLOW = f"""
import sys
from metaflow import BACKEND, FlowSpec, current, gang, step

WAIT = "import sys, time; print('{AT_WORK} as', sys.argv[1], flush=True); time.sleep(1000)"

class Followed(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @BACKEND
    @gang
    @step
    def work(self):
        print("the body begins")
        current.gang.run([sys.executable, "-c", WAIT, str(current.gang.node_index)])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Followed()
"""


@pytest.fixture(scope="session", name="image")
def image_that_stores_logs(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Without a framework; its tasks store their logs while they run."""
    require_packages("boto3")
    return Image(tmp_path_factory.mktemp("image"), *FOR_S3, live_logs=True)


@pytest.mark.slow
def test_lines_of_all_nodes_are_followed_while_they_work_and_until_they_fail(
    kubernetes: Callable[..., KubernetesPlace],
) -> None:
    place = kubernetes(2)
    run = place.start(FLOW)
    nodes = [place.node(index, AT_WORK, run) for index in range(2)]
    found = re.search(r"run-id (\d+)", run.output)
    assert found, run.dump()
    step = f"Followed/{found[1]}/work"

    def ask(*words: str) -> RemoteTask:
        log = place.folder / f"{words[0]}.log"
        return RemoteTask(place.hosts[0], [COMMAND, *words], place.env, place.folder / "user", log)

    following = ask("logs", step, "--follow")
    for node in range(2):
        following.wait_for(f"[node {node}] {AT_WORK} as {node}", RUN_S)
    assert not following.ended and not run.ended
    (process,) = nodes[1].processes(lambda process: process.command[-1:] == ("1",) and AT_WORK in process.command[2])
    assert send_signal(process, 9)
    run.fails(RUN_S)
    said = following.ok(RUN_S)
    for node in range(2):
        assert said.count(f"[node {node}] {AT_WORK} as {node}\n") == 1, said
        assert said.count(f"[node {node}] the body begins\n") == 1, said
        assert re.search(rf"^\[node {node}\] .*The first failure was on node 1 .*SIGKILL", said, re.MULTILINE), said
    told = ask("why", step).ok(RUN_S)
    assert re.search(r"first failure: node 1 \(.+\): .*was killed by SIGKILL", told), told

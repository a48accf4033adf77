"""The launchers besides @torchrun, each on three pods."""

from __future__ import annotations

from collections.abc import Callable

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.mpi import ALL, mpi_folder
from support.requirements import require_tool

from .image import FOR_S3, Image
from .kubernetes.place import KubernetesPlace
from .kubernetes.place import kubernetes as kubernetes
from .workplace import RUN_S, result

FLOW = """
import json
from metaflow import FlowSpec, current, gang, kubernetes, mpi, step

class Launches(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=3)

    @kubernetes
    @DECORATOR
    @step
    def work(self):
        self.found = None
        BODY
        self.next(self.join)

    @step
    def join(self, inputs):
        self.found = inputs[0].found
        self.next(self.end)

    @step
    def end(self):
        print("RESULT", json.dumps(self.found))

if __name__ == "__main__":
    Launches()
"""

RANKS = """
from mpi4py import MPI

print("RANKS", MPI.COMM_WORLD.allgather((MPI.COMM_WORLD.rank, MPI.Get_processor_name())))
"""


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Without PyTorch: what these launchers start needs none."""
    pytest.importorskip("mpi4py")
    return Image(tmp_path_factory.mktemp("image"), "mpi4py", "numpy", *FOR_S3)


def flow(decorator: str, body: str) -> str:
    return FLOW.replace("DECORATOR", decorator).replace("BODY", body)


def names(place: KubernetesPlace) -> list[str]:
    return [pod.domain for role in ("control-0", "worker-0", "worker-1") for pod in place.cluster.find(role)]


def test_gang(kubernetes: Callable[..., KubernetesPlace]) -> None:
    place = kubernetes(3)
    run = place.run(
        flow("gang", "self.found = current.gang.all_gather([node.hostname for node in current.gang.nodes])")
    )
    run.ok(RUN_S)
    assert result(run) == [names(place)] * 3


@pytest.mark.parametrize("transport", ["ssh", "channel"])
@pytest.mark.parametrize("kind", [ALL[0], *(pytest.param(kind, marks=pytest.mark.big) for kind in ALL[1:])])
def test_mpi(kubernetes: Callable[..., KubernetesPlace], image: Image, kind: str, transport: str) -> None:
    for tool, package in (("ssh", "openssh-client"), ("sshd", "openssh-server")):
        require_tool(tool, package)
    programs = mpi_folder(kind).resolve()
    place = kubernetes(3, env={"PATH": f"{image.folder}/bin:{programs}:{image.environment['PATH']}"})
    body = 'current.mpi.exec(program="python", program_args=["ranks.py"])'
    run = place.run(flow(f'mpi(transport="{transport}")', body), ranks=RANKS)
    run.ok(RUN_S)
    assert all(f"'{name}'" in run.output for name in names(place)), run.story()

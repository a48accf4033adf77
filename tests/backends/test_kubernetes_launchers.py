"""Each other launcher on three pods, in whose image there is nothing but Python and what it starts."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.frameworks.launches import DEEPSPEED, JAX, MPI, RAY, TENSORFLOW, launches
from support.frameworks.mpi import OPEN_MPI_4, OPEN_MPI_5, mpi_folder
from support.frameworks.tensorflow import QUIET
from support.requirements import missing, require_tool

from .image import FOR_S3, Image
from .kubernetes.place import KubernetesPlace
from .kubernetes.place import kubernetes as kubernetes
from .workplace import RUN_S, result

BIG = pytest.mark.big

NODES = range(3)

MIB = 1 << 20

Kubernetes = Callable[..., KubernetesPlace]


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What the test says by :func:`image_with`."""
    try:
        return Image(tmp_path_factory.mktemp("image"), *request.param, *FOR_S3)
    except PackageNotFoundError as error:
        missing(f"The Python package {error.name} is not installed.")


def image_with(*distributions: str) -> pytest.MarkDecorator:
    """What the pods of a test have besides Python and what Metaflow itself installs."""
    return pytest.mark.parametrize("image", [distributions], indirect=True, ids=distributions[:1])


def flow(decorator: str, body: str) -> str:
    return launches("kubernetes(shared_memory=200)", decorator, body)


def names(place: KubernetesPlace) -> list[str]:
    return [pod.domain for role in ("control-0", "worker-0", "worker-1") for pod in place.cluster.find(role)]


@BIG
@image_with("numpy")
def test_gang(kubernetes: Kubernetes) -> None:
    place = kubernetes(3)
    body = "self.found = current.gang.all_gather([node.hostname for node in current.gang.nodes])"
    run = place.run(flow("gang", body))
    run.ok(RUN_S)
    assert result(run) == [names(place)] * 3


MPIS = [(OPEN_MPI_4, "channel"), (OPEN_MPI_5, "ssh")]
"""Each transport; all pairs run on hosts, in test_mpi_hosts.py."""


@pytest.mark.slow
@image_with("mpi4py", "numpy")
@pytest.mark.parametrize(("kind", "transport"), [MPIS[0], *(pytest.param(*mpi, marks=BIG) for mpi in MPIS[1:])])
def test_mpi(kubernetes: Kubernetes, image: Image, kind: str, transport: str) -> None:
    if transport == "ssh":
        require_tool("ssh", "openssh-client")
        require_tool("sshd", "openssh-server")
    programs = mpi_folder(kind).resolve()
    place = kubernetes(3, env={"PATH": f"{image.folder}/bin:{programs}:{image.environment['PATH']}"})
    body = 'current.mpi.exec(program="python", program_args=["ranks.py"])'
    run = place.run(flow(f'mpi(transport="{transport}")', body), ranks=MPI)
    run.ok(RUN_S)
    assert all(f"({rank}, '{name}')" in run.output for rank, name in enumerate(names(place))), run.dump()


@BIG
@image_with("deepspeed", "numpy")
def test_deepspeed(kubernetes: Kubernetes) -> None:
    """By each node's own launcher; ssh and the channel are between pods in :func:`test_mpi`."""
    place = kubernetes(3)
    body = "from train import train; self.found = current.deepspeed.run(entrypoint=train)"
    run = place.run(flow("deepspeed", body), train=DEEPSPEED)
    run.ok(RUN_S)
    found = result(run)
    assert [one[:3] for one in found] == [[name, rank, [3]] for rank, name in enumerate(names(place))]
    assert all(one[3] == found[0][3] for one in found), found
    said = place.task_logs(run, 2)
    assert "rank 2 is done" in said and "rank 1 is done" not in said, said


@BIG
@image_with("ray", "numpy")
def test_ray(kubernetes: Kubernetes) -> None:
    """What ``pip install ray`` installs is enough, without the extras for Ray's clients and its dashboard."""
    place = kubernetes(3)
    body = "from visit import visit; self.found = visit()"
    run = place.run(flow("metaflow_ray(enable_worker_logs=True)", body), visit=RAY)
    run.ok(RUN_S)
    visited, stores = result(run)
    assert visited == [[name, 5_000_000] for name in names(place)]
    # Of shared_memory, at most 95 % of what /dev/shm has.
    assert 3 * 190 * MIB <= stores <= 3 * 200 * MIB
    said = place.task_logs(run, 2)
    assert "node 2 is visited" in said and "node 1 is visited" not in said, said


@BIG
@image_with("tensorflow-cpu")
def test_tensorflow(kubernetes: Kubernetes) -> None:
    adds_up(kubernetes, "tensorflow", TENSORFLOW)


@BIG
@image_with("jax")
def test_jax(kubernetes: Kubernetes) -> None:
    adds_up(kubernetes, "jax", JAX)


def adds_up(kubernetes: Kubernetes, decorator: str, total: str) -> None:
    """Insist that the nodes make a sum, each of a number of its own, and that the last of them tells it in its log."""
    place = kubernetes(3, env=QUIET)
    body = "from total import total; self.found = total(current.gang.node_index)"
    run = place.run(flow(decorator, body), total=total)
    run.ok(RUN_S)
    assert result(run) == [111.0, 3]
    said = place.task_logs(run, 2)
    assert "node 2 has 111.0" in said and "node 1 has" not in said, said

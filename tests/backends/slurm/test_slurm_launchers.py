"""Each launcher but @torchrun, which test_digits.py has, on three nodes of a Slurm."""

from __future__ import annotations

from collections.abc import Callable

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.frameworks.launches import DEEPSPEED, JAX, MPI, RAY, TENSORFLOW, launches
from support.frameworks.mpi import OPEN_MPI_4, OPEN_MPI_5, mpi_folder
from support.frameworks.tensorflow import QUIET
from support.requirements import require_packages, require_tool

from ..workplace import RUN_S, result
from .place import SlurmPlace
from .place import slurm as slurm

pytestmark = pytest.mark.slow

Slurms = Callable[..., SlurmPlace]

NODES = ["gang1", "gang2", "gang3"]


def test_gang(slurm: Slurms) -> None:
    """A setting of the run counts in the tasks, which are not started with the run's environment."""
    place = slurm(3)
    place.env["METAFLOW_GANG_KILL_GRACE"] = "0.75"
    grace = '__import__("os").environ["METAFLOW_GANG_KILL_GRACE"]'
    body = f"self.found = current.gang.all_gather([{grace}, [node.hostname for node in current.gang.nodes]])"
    run = place.run(launches("slurm", "gang", body))
    run.ok(RUN_S)
    assert result(run) == [["0.75", NODES]] * 3


@pytest.mark.parametrize(("kind", "transport"), [(OPEN_MPI_4, "channel"), (OPEN_MPI_5, "ssh")])
def test_mpi(slurm: Slurms, kind: str, transport: str) -> None:
    """Open MPI knows Slurm, and would ask it for nodes and for its daemons' start."""
    require_packages("mpi4py")
    if transport == "ssh":
        require_tool("ssh", "openssh-client")
        require_tool("sshd", "openssh-server")
    programs = mpi_folder(kind).resolve()
    place = slurm(3)
    # The job has the PATH of a login shell: the step says where its MPI is, as a site's module would.
    body = f"""import os
        os.environ["PATH"] = "{programs}:" + os.environ["PATH"]
        current.mpi.exec(program=__import__("sys").executable, program_args=["ranks.py"])"""
    run = place.run(launches("slurm", f'mpi(transport="{transport}")', body), ranks=MPI)
    run.ok(RUN_S)
    assert all(f"({rank}, '{name}')" in run.output for rank, name in enumerate(NODES)), run.dump()


def test_deepspeed(slurm: Slurms) -> None:
    require_packages("deepspeed")
    place = slurm(3)
    body = "from train import train; self.found = current.deepspeed.run(entrypoint=train)"
    run = place.run(launches("slurm", "deepspeed", body), train=DEEPSPEED)
    run.ok(RUN_S)
    found = result(run)
    # A job has one of a node's two processors, and so a node has one slot.
    assert [one[:3] for one in found] == [[name, rank, [3]] for rank, name in enumerate(NODES)]
    assert all(one[3] == found[0][3] for one in found), found


def test_ray(slurm: Slurms) -> None:
    require_packages("ray")
    place = slurm(3)
    body = "from visit import visit; self.found = visit()"
    run = place.run(launches("slurm", "metaflow_ray(enable_worker_logs=True)", body), visit=RAY)
    run.ok(RUN_S)
    visited, _ = result(run)
    assert visited == [[name, 5_000_000] for name in NODES]
    said = place.task_logs(run, 2)
    assert "node 2 is visited" in said and "node 1 is visited" not in said, said


@pytest.mark.parametrize(
    ("decorator", "total", "package"), [("tensorflow", TENSORFLOW, "tensorflow"), ("jax", JAX, "jax")]
)
def test_nodes_add_up(slurm: Slurms, decorator: str, total: str, package: str) -> None:
    """A sum, to which each node gives a number of its own, and which the last of them tells in its log."""
    require_packages(package)
    place = slurm(3)
    quiet = f"environment(vars={QUIET!r})"
    body = "from total import total; self.found = total(current.gang.node_index)"
    run = place.run(launches(f"{quiet}\n    @metaflow.slurm", decorator, body), total=total)
    run.ok(RUN_S)
    assert result(run) == [111.0, 3]
    said = place.task_logs(run, 2)
    assert "node 2 has 111.0" in said and "node 1 has" not in said, said

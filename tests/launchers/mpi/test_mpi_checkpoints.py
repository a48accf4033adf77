"""@checkpoint under @mpi on two hosts: what a rank of another node or the body saves is what the next attempt loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.flows import FlowRunner
from support.frameworks.mpi import ALL, OPEN_MPI_4, path_with
from support.hosts import Hosts
from support.remote import Datastore, RemoteGang
from support.requirements import require_packages

pytestmark = pytest.mark.slow

BIG = pytest.mark.big

END_S = 120.0
"""For an attempt, on a machine that is busy: tells an end from a hang."""

RANK = """
import json, os, sys
from metaflow import Checkpoint
from mpi4py import MPI

world = MPI.COMM_WORLD
if world.rank == int(sys.argv[1]):
    os.makedirs("by-a-rank", exist_ok=True)
    with open("by-a-rank/state.json", "w") as file:
        json.dump(f"rank {world.rank} on node {os.environ['METAFLOW_GANG_ID'].rpartition('.')[2]}", file)
    Checkpoint().save("by-a-rank", name="ranks")
world.Barrier()
"""

FLOW = """
import json, os
from metaflow import FlowSpec, checkpoint, current, mpi, resources, step

class Saves(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @resources(cpu=1)
    @checkpoint
    @mpi
    @step
    def work(self):
        print("LOADED", current.checkpoint.is_loaded)
        if current.retry_count == 0:
            self.first_attempt()
        with open(os.path.join(current.checkpoint.directory, "state.json")) as file:
            print("HOLDS", json.load(file))
        self.next(self.join)

    def first_attempt(self):
        current.mpi.run(["-n", "2"], "python rank.py", [os.environ["SAVING_RANK"]])
        if "BODY_SAVES" in os.environ:
            os.makedirs("by-the-body")
            with open("by-the-body/state.json", "w") as file:
                json.dump("the body", file)
            current.checkpoint.save("by-the-body", name="body")
        raise RuntimeError("the first attempt ends here")

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Saves()
"""


def register(root: Path) -> None:
    """Tell Metaflow's client of the run and node 0's task: a provider of metadata takes a number for registered."""
    about: dict[str, object] = {"ts_epoch": 0, "tags": [], "system_tags": ["user:tester"]}
    folder = root
    for kind, name in (("flow_id", "Saves"), ("run_number", "7"), ("step_name", "work"), ("task_id", "3")):
        folder, about = folder / name, {**about, kind: name}
        (folder / "_meta").mkdir(parents=True, exist_ok=True)
        (folder / "_meta" / "_self.json").write_text(json.dumps(about))


SAVERS = {
    "rank 0": ({"SAVING_RANK": "0"}, "rank 0 on node 0"),
    "rank 1": ({"SAVING_RANK": "1"}, "rank 1 on node 1"),
    "body": ({"SAVING_RANK": "1", "BODY_SAVES": "1"}, "the body"),
}


@pytest.mark.parametrize(
    ("kind", "env", "loaded"),
    [
        pytest.param(kind, *case, id=f"{kind}, {who}", marks=() if kind == OPEN_MPI_4 or who == "rank 1" else BIG)
        for kind in ALL
        for who, case in SAVERS.items()
    ],
)
def test_the_next_attempt_loads_what_was_saved_last(
    tmp_path: Path, kind: str, env: dict[str, str], loaded: str
) -> None:
    require_packages("mpi4py", "metaflow_extensions.obcheckpoint")
    (tmp_path / "rank.py").write_text(RANK)
    # Where Metaflow's client, by which @checkpoint looks at the run, finds a local datastore.
    datastore = Datastore("local", str(tmp_path / "datastore" / ".metaflow"))
    with Hosts(2) as hosts:
        gang = RemoteGang(hosts, tmp_path, FLOW, 2, datastore=datastore)
        register(Path(datastore.root))
        control, other = gang.start_all(PATH=path_with(kind), **env)
        said = control.fails(END_S)
        other.wait(END_S)
        assert "LOADED False" in said and "the first attempt ends here" in said, said
        control, other = gang.start_all(attempt=1, PATH=path_with(kind), **env)
        said = control.ok(END_S)
        other.ok(END_S)
        gang.wait_until_gone()
    assert "LOADED True" in said and f"HOLDS {loaded}" in said, said


RUNS = """
import json, os
from metaflow import FlowSpec, checkpoint, current, mpi, step

class Runs(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @checkpoint(load_policy="eager")
    @mpi
    @step
    def work(self):
        self.found = "nothing"
        if current.checkpoint.is_loaded:
            with open(os.path.join(current.checkpoint.directory, "state.json")) as file:
                self.found = json.load(file)
        current.mpi.run(["-n", "2"], "python rank.py", [os.environ["SAVING_RANK"]])
        if "BODY_SAVES" in os.environ:
            with open("by-a-rank/state.json", "w") as file:
                json.dump("the body", file)
            current.checkpoint.save("by-a-rank", name="body")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.found = inputs[0].found
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Runs()
"""


@pytest.mark.big
@pytest.mark.timeout(5 * END_S)
@pytest.mark.parametrize("who", SAVERS)
@pytest.mark.parametrize("kind", ALL)
def test_the_next_run_loads_what_the_run_before_it_has_saved(flow_run: FlowRunner, kind: str, who: str) -> None:
    require_packages("mpi4py", "metaflow_extensions.obcheckpoint")
    variables, saved = SAVERS[who]
    env = {**variables, "PATH": path_with(kind)}
    first = flow_run(RUNS, env=env, files={"rank.py": RANK}).ok(2 * END_S)
    assert first.artifact("join", "found") == "nothing"
    second = flow_run(RUNS, env=env, folder=first.folder).ok(2 * END_S)
    assert second.artifact("join", "found") == saved

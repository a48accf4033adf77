"""A launcher of your own: `@scatter` gives a step `current.scatter.run`, which runs ranks on all nodes."""

import os

import metaflow  # noqa: F401 - first: it makes the extensions importable

from metaflow_extensions.gang.core.attributes import read_nproc
from metaflow_extensions.gang.core.calls.rank_process import rank_process
from metaflow_extensions.gang.core.calls.run import Runs
from metaflow_extensions.gang.core.exceptions import GangException
from metaflow_extensions.gang.core.gang.launch_plan import LaunchPlan
from metaflow_extensions.gang.core.ranks.peer_lost import RANK_PEER_LOST, port_taken
from metaflow_extensions.gang.core.step.custom import step_decorator
from metaflow_extensions.gang.core.step.decorator import GangDecorator


class ScatterFailed(GangException):
    """A rank failed; the message says which, how, and shows its last output."""

    headline = "@scatter"


class ScatterExecutor:
    """`current.scatter` in a `@scatter` step."""

    def __init__(self, gang, nproc):
        self._gang, self._nproc = gang, nproc
        self._runs = Runs(gang, ScatterFailed)

    def run(self, entrypoint, entrypoint_args=None):
        """Runs a function, or a script, in every rank; what the functions returned, in the order of their ranks."""
        gang, runs, nproc = self._gang, self._runs, self._nproc
        with runs.entrypoint(entrypoint, entrypoint_args) as what:
            answers = runs.agree({"nproc": nproc, "port": runs.port(None)})  # each node's, on all nodes
            nprocs = [answer["nproc"] for answer in answers]
            first = sum(nprocs[: gang.node_index])

            def start(attempt):
                env = {**os.environ, "WORLD_SIZE": str(sum(nprocs)), "MASTER_ADDR": gang.main_address}
                env["MASTER_PORT"] = str(attempt.port)  # what torch.distributed.init_process_group() reads
                ranks = []
                for local in range(nproc):
                    own = {**env, "LOCAL_RANK": str(local)}
                    ranks.append(rank_process(what, first + local, own, gang.folder, attempt.key, several=nproc > 1))
                taken = port_taken(attempt.port) if attempt.is_ours else None
                gang.launch(LaunchPlan(tuple(ranks), peer_lost=RANK_PEER_LOST, port_taken=taken, key=attempt.key))

            runs.launch(start, what, answers[0]["port"], is_ours=True)
            return runs.result(what, nprocs)


class ScatterDecorator(GangDecorator):
    """Runs the step on every node of a gang, with `nproc` ranks for each (a number, "gpu", "cpu" or "auto")."""

    name = "scatter"
    defaults = {**GangDecorator.defaults, "nproc": "auto"}

    def check_attributes(self):
        super().check_attributes()
        read_nproc(self.attributes["nproc"], gpus=1, cpus=1)  # how it is spelled; each node counts its own

    def form(self, gang):
        nproc = read_nproc(self.attributes["nproc"], gang.node.gpus, gang.node.cpus)
        return {"scatter": ScatterExecutor(gang, nproc)}


scatter = step_decorator(ScatterDecorator)

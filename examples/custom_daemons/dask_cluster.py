"""A launcher of programs beside the body: `@dask` makes the gang a Dask cluster for as long as a step."""

import importlib.util
import os
import sys

import metaflow  # noqa: F401 - first: it makes the extensions importable

from metaflow_extensions.gang.core.attributes import whole_number
from metaflow_extensions.gang.core.exceptions import BadAttribute, ToolMissing
from metaflow_extensions.gang.core.gang.gang import offered
from metaflow_extensions.gang.core.gang.launch_plan import Process
from metaflow_extensions.gang.core.step.custom import step_decorator
from metaflow_extensions.gang.core.step.decorator import GangDecorator

PYTHON_M_DASK = (sys.executable, "-m", "dask")


def scheduler(address, port, folder):
    """Dask's scheduler, which runs on node 0."""
    argv = ("scheduler", "--host", address, "--port", str(port), "--no-dashboard")
    return Process((*PYTHON_M_DASK, *argv), dict(os.environ), cwd=folder, title="Dask's scheduler")


def worker(rank, scheduler_address, address, threads, folder):
    """One node's Dask worker: without Dask's own nanny, which would start a worker again that was killed."""
    argv = ("worker", scheduler_address, "--host", address, "--name", f"node{rank}", "--nthreads", str(threads))
    argv += ("--no-nanny", "--no-dashboard", "--local-directory", folder)
    return Process((*PYTHON_M_DASK, *argv), dict(os.environ), title=f"Dask worker {rank}", rank=rank)


class DaskCluster:
    """`current.dask` in a `@dask` step."""

    def __init__(self, address):
        self.address, self._clients = address, []

    def client(self):
        """A `distributed.Client` of this cluster."""
        from distributed import Client

        self._clients.append(Client(self.address))
        return self._clients[-1]

    def close(self):
        """Closes what `client()` gave."""
        for client in self._clients:
            client.close(timeout=1)


class DaskDecorator(GangDecorator):
    """Runs the step on node 0 of a Dask cluster of all nodes, with `threads` for each worker (all cores by default)."""

    name = "dask"
    defaults = {**GangDecorator.defaults, "threads": None}
    runs_on_control_only = True
    cluster = None

    def check_attributes(self):
        super().check_attributes()
        threads = self.attributes["threads"]
        if threads is not None and (whole_number(threads) or 0) < 1:
            raise BadAttribute(f"@dask(threads={threads!r}): threads is a whole number of at least 1.")

    def preflight(self):
        if importlib.util.find_spec("distributed") is None:
            raise ToolMissing("@dask needs the package distributed: add distributed to the step's image.")

    def offer(self, free_port):
        return {"port": free_port()}  # all nodes know it as soon as they have joined

    def form(self, gang):
        host = f"[{gang.main_address}]" if ":" in gang.main_address else gang.main_address
        port, threads = offered(gang)["port"], self.attributes["threads"] or gang.node.cpus
        self.cluster = DaskCluster(f"tcp://{host}:{port}")
        if gang.is_control:
            gang.start(scheduler(gang.main_address, port, gang.folder), ready="Scheduler at:")
        gang.barrier()  # the workers begin when there is a scheduler
        mine = worker(gang.node_index, self.cluster.address, gang.node.address, threads, gang.folder)
        gang.start(mine, ready=r"Registered to:")
        gang.barrier()  # the body begins when all workers are there
        return {"dask": self.cluster}

    def leave(self, ok):
        if self.cluster:
            self.cluster.close()


dask = step_decorator(DaskDecorator)

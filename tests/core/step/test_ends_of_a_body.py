"""A node whose body ends while the others go on: told as what it is, whichever node it is; nobody waits for ever."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from pathlib import Path

import pytest
from support.flows import FlowRunner
from support.requirements import require_packages

pytestmark = pytest.mark.slow

END_S = 90.0
"""For a run that begins and fails, on a machine that is busy with other tests."""

FLOW = """
import os, time
from metaflow import FlowSpec, Parameter, current, {launcher}, step

class Exits:
    def __reduce__(self):
        os._exit(3)

class Ends(FlowSpec):
    how = Parameter("how", default="")

    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @{launcher}
    @step
    def work(self):
        is_control = current.gang.is_control
        if self.how == "node 0 ends early":
            if not is_control:
                current.gang.barrier()
        elif self.how == "node 0 runs no ranks":
            if not is_control:
                current.torch.run(entrypoint="ranks.py")
        elif self.how == "stored badly":
            self.words = "" if is_control else Exits()
        elif is_control != self.how.startswith("node 0"):
            current.gang.barrier()
        elif "exec" in self.how:
            os.execvp("sleep", ["sleep", "1000"])
        elif "closes" in self.how:
            os.closerange(3, 4096)
            time.sleep(1000)
        else:
            os._exit(int(self.how.rpartition(" ")[2]))
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Ends()
"""


def test_node_0_s_body_ends_while_another_waits_in_a_collective(flow_run: FlowRunner) -> None:
    """Node 0 itself waits for the others then, so nobody would ever leave."""
    run = flow_run(FLOW.format(launcher="gang"), "--how", "node 0 ends early")
    run.fails(END_S)
    for node in (0, 1):
        told = run.node_log("work", node, "stderr")
        assert re.search(r"node 0 \(.*\): finished its step while node 1 waits for it in barrier\(\)", told), told


@pytest.mark.big
def test_node_0_s_body_ends_without_the_ranks_that_another_starts(flow_run: FlowRunner) -> None:
    require_packages("torch")
    run = flow_run(FLOW.format(launcher="torchrun"), "--how", "node 0 runs no ranks", files={"ranks.py": ""})
    told = run.fails(END_S)
    assert re.search(r"node 0 \(.*\): finished its step while node 1 waits for it in ", told), told


@pytest.mark.parametrize(
    ("how", "node", "told"),
    [
        ("exits with 3", 1, "the node's task exited with code 3 without finishing its step"),
        ("node 0 exits with 0", 0, "the node's task exited with code 0 without finishing its step"),
        ("stored badly", 1, "the node's task exited with code 3 after its body, while Metaflow stored its state"),
        ("exec", 1, "the step's body replaced its own process by another program (exec): process"),
        ("closes descriptors", 1, "the step's body closed descriptors that it had not opened"),
    ],
)
def test_a_body_that_ends_without_an_exception_is_told_as_what_it_did(
    flow_run: FlowRunner, how: str, node: int, told: str
) -> None:
    """Not as having finished its step, though its guard says goodbye, nor as killed by the signal that ends it."""
    output = flow_run(FLOW.format(launcher="gang"), "--how", how).fails(END_S)
    assert re.search(rf"The first failure was on node {node} \(.*\): {re.escape(told)}", output), output
    assert "finished its step while" not in output
    assert "SIGKILL" not in output


LEAVES = """
import os, subprocess, sys, tempfile, time
from metaflow import FlowSpec, current, gang, step

DAEMON = '''
import os, signal, sys, time
def end(number, frame):
    time.sleep(0.1)
    os.rmdir(sys.argv[1])
    os._exit(0)
signal.signal(signal.SIGTERM, end)
os.mkdir(sys.argv[1])
time.sleep(1000)
'''

class Leaves(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang
    @step
    def work(self):
        folder = f"daemon-{current.gang.node_index}"
        subprocess.Popen([sys.executable, "-c", DAEMON, folder], start_new_session=True)
        if os.environ["MPI"]:
            from mpi4py import MPI
            print("Open MPI 4:", "Open MPI v4" in MPI.Get_library_version(), os.listdir(tempfile.gettempdir()))
        deadline = time.monotonic() + 60
        while not os.path.exists(folder):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Leaves()
"""


def test_what_a_body_leaves_running_may_clean_up(flow_run: FlowRunner) -> None:
    """As the daemon of Open MPI 4 does, which the import of mpi4py starts: it removes its folder after the task."""
    has_mpi = importlib.util.find_spec("mpi4py") is not None
    run = flow_run(LEAVES, env={"MPI": "1" if has_mpi else ""}).ok(END_S)
    assert list(run.folder.glob("daemon-*")) == []
    assert list(Path(tempfile.gettempdir()).glob("ompi.*/pid.*")) == [], run.dump()

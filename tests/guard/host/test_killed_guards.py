"""What a guard owned goes also where it was killed alone, and what a body leaves goes whatever its environment."""

from __future__ import annotations

import glob
import os
import time
from pathlib import Path

import pytest
from support.flows import FlowRunner
from support.processes import read_process

pytestmark = pytest.mark.slow

RUN_S = 120.0
"""For a flow to end, on a machine that is busy with other tests."""

GONE_S = 10.0
"""For a guard to be gone after its task."""

FLOW = """
import os, signal, subprocess, sys, time
from metaflow import FlowSpec, current, gang, step

DAEMON = "import os, sys, time; print(os.getpid(), file=open(sys.argv[1], 'w')); time.sleep(1000)"

class Killed(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang(end_timeout=6)
    @step
    def work(self):
        gang, mark = current.gang, os.environ["MARK"]
        gang.own_folder(f"{mark}-folder-{gang.node_index}")
        gang.own_files(f"{mark}-file-{gang.node_index}*")
        gang.lease_port()
        open(f"{mark}-file-{gang.node_index}.x", "w").close()
        # Daemons in sessions of their own, without any variable of ours; two are orphans, too, one of them without the
        # task's output.
        for orphan in ("", '"$@" &', '"$@" < /dev/null > /dev/null 2>&1 &'):
            program = [sys.executable, "-c", DAEMON, f"daemon-{gang.node_index}-{len(orphan)}"]
            if orphan:
                subprocess.run(["sh", "-c", orphan, "sh", *program], env={}, start_new_session=True)
            else:
                subprocess.Popen(program, env={}, start_new_session=True)
            while not os.path.exists(program[-1]):
                time.sleep(0.02)
        gang.barrier()
        if str(gang.node_index) == os.environ["VICTIM"]:
            os.kill(gang._link.guard_pid, signal.SIGKILL)
            if os.environ["ALSO"] == "task":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1000)
        if os.environ["VICTIM"]:
            gang.run(["sleep", "1000"])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Killed()
"""


@pytest.mark.parametrize(
    ("victim", "also"),
    [
        pytest.param("1", "task", id="guard 1 and its task"),
        pytest.param("", "", id="nobody"),
        pytest.param("1", "", id="guard 1", marks=pytest.mark.big),
        pytest.param("0", "", id="guard 0", marks=pytest.mark.big),
    ],
)
def test_what_a_node_owned_is_gone(flow_run: FlowRunner, tmp_path: Path, victim: str, also: str) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    mark = tmp_path / "mark"
    run = flow_run(FLOW, env={"VICTIM": victim, "ALSO": also, "MARK": str(mark), "TMPDIR": str(temporary)})
    assert (run.wait(RUN_S) != 0) == bool(victim), run.dump()
    daemons = [int(path.read_text()) for path in run.folder.glob("daemon-*")]
    assert len(daemons) == 6, run.dump()
    deadline = time.monotonic() + GONE_S
    while (left := _left(mark, temporary, daemons)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, f"{left}\n{run.dump()}"


def _left(mark: Path, temporary: Path, daemons: list[int]) -> list[str]:
    ours = [str(path) for path in temporary.glob("metaflow-gang-*/**/*")]
    living = [str(process) for pid in daemons if (process := read_process(pid)) is not None and not process.zombie]
    return [*glob.glob(f"{mark}-*"), *ours, *living, *(f for f in os.listdir(temporary) if f.startswith("metaflow-"))]

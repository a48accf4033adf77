"""What nobody can end is told once, and not waited for: the launch is answered, and the gang goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.flows import FlowRunner
from support.paths import TESTS
from support.requirements import require_tool

END_S = 60.0

PROGRAM = r"""
import os, sys, time
sys.path.insert(0, sys.argv[1])
from support.guard.launches import collected, process, run_launch
from metaflow_extensions.gang.core.guard.settings import use_settings

use_settings({"unkillable_timeout": 1.0})
told = []
leave = (
    "import os, sys, time\n"
    "if os.fork() == 0:\n"
    "    os.setresuid(1000, 1000, 1000)\n"
    "    os.close(1); os.close(2)\n"
    "    time.sleep(20)\n"
    "    os._exit(0)\n"
    "time.sleep(0.3)\n"
    "print('ended well')"
)
started = time.monotonic()
ended = run_launch(
    process(sys.executable, "-c", leave), grace=0.1,
    meanwhile=lambda loop, launch: setattr(launch, "on_unkillable", told.extend),
)
from metaflow_extensions.gang.core.guard.processes.process_table import described
print(ended.results[0]["exit_code"], f"{time.monotonic() - started:.1f}", [described(pid) for pid in told])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a process that it may not signal then")
def test_a_process_that_may_not_be_signalled_does_not_hold_up_the_launch(tmp_path: Path) -> None:
    setpriv = require_tool("setpriv", "util-linux")
    done = subprocess.run(
        [
            *(setpriv or "setpriv", "--bounding-set=-kill", "--inh-caps=-kill"),
            *(sys.executable, "-c", PROGRAM, str(TESTS)),
        ],
        capture_output=True,
        text=True,
        timeout=END_S,
    )
    for pid in re.findall(r"process (\d+) ", done.stdout):
        os.kill(int(pid), signal.SIGKILL)  # the test may
    code, seconds, told = done.stdout.strip().splitlines()[-1].split(" ", 2)
    assert code == "0" and 1.0 <= float(seconds) < 15.0, done.stdout + done.stderr
    assert "of user 1000" in told and "state S" in told and "python" in told, told


FLOW = """
import sys
from metaflow import FlowSpec, current, gang, step

LEAVE = (
    "import os, time\\n"
    "if os.fork() == 0:\\n"
    "    os.setresuid(1000, 1000, 1000)\\n"
    "    os.close(1); os.close(2)\\n"
    "    time.sleep(60)\\n"
    "    os._exit(0)\\n"
    "time.sleep(0.3)\\n"
)

class Unkillable(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang
    @step
    def work(self):
        self.code = current.gang.run([sys.executable, "-c", LEAVE]) if current.gang.is_control else None
        current.gang.barrier()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.codes = [one.code for one in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Unkillable()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a process that it may not signal then")
def test_a_gang_with_such_a_process_goes_on_and_ends_well(flow_run: FlowRunner) -> None:
    setpriv = require_tool("setpriv", "util-linux") or "setpriv"
    run = flow_run(
        FLOW,
        python=(setpriv, "--bounding-set=-kill", "--inh-caps=-kill", sys.executable),
        env={"METAFLOW_GANG_UNKILLABLE_TIMEOUT": "1"},
    )
    run.ok(2 * END_S)
    told = r"Could not be ended within 1 s of SIGKILL.*: process (\d+) \(.*\), state S.*, of user 1000"
    left = set(re.findall(told, run.output))
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)  # the test may
    assert len(left) == 1, run.dump()
    assert run.artifact("join", "codes") == [0, None]

"""Processes that run beside the body (``current.gang.start``): awaited, watched, and ended with the gang."""

from __future__ import annotations

import re
import time

import pytest
from support.faults import kill_process, stopped
from support.flows import FlowRun, FlowRunner

START_S = 90.0
"""For a flow to be up, on a machine that is busy with other tests."""

END_S = 25.0
"""Tells an end from a hang."""

FLOW = """
import os, sys, time
from metaflow import FlowSpec, Parameter, current, gang, step
from metaflow_extensions.gang.core.exceptions import BadAttribute, GangException, ProcessFailed
from metaflow_extensions.gang.core.gang.launch_plan import Process

# Ready in the middle of a line that comes in pieces, on the stream that is asked for; then it leaves descendants that
# have a session and an environment of their own.
SERVER = '''
import os, subprocess, sys, time
print("not shown")
stream = getattr(sys, sys.argv[1])
for piece in (b"\\\\xff\\\\xfe listen", b"ing on port ", b"17 and more"):
    stream.buffer.write(piece)
    stream.flush()
    time.sleep(0.1)
subprocess.Popen(["sh", "-c", "setsid env -i /bin/sh -c 'sleep 1000' & sleep 1000"], start_new_session=True)
with open(f"server-{sys.argv[2]}.new", "w") as file:
    file.write(str(os.getpid()))
os.rename(f"server-{sys.argv[2]}.new", f"server-{sys.argv[2]}")
wait = os.environ.get("WAIT_FOR", "")
while not (wait and os.path.exists(wait)):
    time.sleep(0.02)
'''

def daemon(code, *arguments, title="server", **env):
    return Process((sys.executable, "-c", code, *arguments), {**os.environ, **env}, title=title)

def raised(kind, function):
    try:
        function()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")

class Daemons(FlowSpec):
    how = Parameter("how")

    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang(all_nodes_started_timeout=60)
    @step
    def work(self):
        gang = current.gang
        getattr(self, "do_" + self.how)(gang, gang.node_index)
        self.next(self.join)

    def serve(self, gang, node, **env):
        gang.start(daemon(SERVER, "stderr" if node else "stdout", str(node), **env), ready="listening on port [0-9]+")
        while not os.path.exists(f"server-{node}"):
            time.sleep(0.02)
        gang.barrier()
        with open(f"task-{node}.new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(f"task-{node}.new", f"task-{node}")

    def do_well(self, gang, node):
        self.serve(gang, node)
        assert gang.run("true") == 0

    def do_shown(self, gang, node):
        code = "import sys, time; print('out', sys.argv[1]); print('err', sys.argv[1], file=sys.stderr); print('up')"
        gang.start(daemon(code + "; sys.stdout.flush(); time.sleep(1000)", str(node)), ready="up", shown=True)
        gang.barrier()

    def do_not_ready(self, gang, node):
        code = "import os; print('I am', os.getpid(), flush=True); import time; time.sleep(1000)"
        late = raised(GangException, lambda: gang.start(daemon(code), ready="never", timeout=1.5))
        assert type(late) is GangException
        assert f"server on node {node} was not ready within 1.5 s, and was ended. Its last output:" in str(late), late
        pid = int(str(late).split("I am ")[1])
        assert not os.path.exists(f"/proc/{pid}"), "it was ended before the call came back"
        code = "import time; time.sleep(1000)"
        late = raised(GangException, lambda: gang.start(daemon(code), ready="never", timeout=0.2))
        assert "It wrote nothing." in str(late), late

        for code, exit_code in (("import sys; sys.exit('no room')", 1), ("print('no room')", 0)):
            died = raised(ProcessFailed, lambda: gang.start(daemon(code), ready="^never"))
            assert (died.title, died.exit_code) == ("server", exit_code), died
            assert "no room" in died.tail and "no room" in str(died), died
        died = raised(ProcessFailed, lambda: gang.start(Process(("no-such-server",), {}, title="server"), ready="x"))
        assert died.exit_code == 127 and "'no-such-server' could not be started" in str(died), died
        assert "is not a regular expression" in str(raised(BadAttribute, lambda: gang.start(daemon(""), ready="(")))
        assert gang.all_gather(node) == [0, 1], "the gang goes on"
        print(f"went on {node};", flush=True)

    def do_not_ready_and_not_caught(self, gang, node):
        gang.start(daemon("import sys; sys.exit('no room')"), ready="x") if node else gang.barrier()

    def do_ends(self, gang, node):
        self.serve(gang, node, WAIT_FOR="end" if node else "")
        gang.barrier() if node else gang.run(["sleep", "1000"])

    def do_stop_meanwhile(self, gang, node):
        if node:
            open("fails", "w").close()
            raise ValueError("the other node's")
        gang.start(daemon("import time; time.sleep(1000)"), ready="never", timeout=600)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Daemons()
"""


def serving(run: FlowRun, node: int) -> dict[str, int]:
    """The pids of a node's task and of its server, once both nodes' servers are ready.

    Told by files: of two lines that come at once, Metaflow's runtime shows the second when there is a third.
    """
    files = [run.folder / f"task-{one}" for one in (0, 1)]
    deadline = time.monotonic() + START_S
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline and run.exit_code is None, run.dump()
        time.sleep(0.02)
    return {what: int((run.folder / f"{what}-{node}").read_text()) for what in ("task", "server")}


@pytest.mark.slow
def test_a_daemon_runs_unseen_beside_the_body_and_ends_with_it(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "well").ok(START_S)
    assert "not shown" not in run.output and "listening" not in run.output
    assert run.left(END_S) == [], "its descendants that have a session of their own are gone, too"


@pytest.mark.slow
def test_one_that_is_shown_speaks_in_its_own_nodes_log(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "shown").ok(START_S)
    for node, other in ((0, 1), (1, 0)):
        # What it is told by ends up in the log like the rest.
        lines = run.node_log("work", node).splitlines()
        assert [line for line in lines if line in (f"out {node}", "up")] == [f"out {node}", "up"], lines
        assert f"out {other}" not in lines
        assert f"err {node}" in run.node_log("work", node, "stderr").splitlines()
    assert run.left(END_S) == []


@pytest.mark.slow
def test_one_that_does_not_become_ready_is_the_callers_to_judge(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "not_ready").ok(START_S)
    assert "went on 0;" in run.output and "went on 1;" in run.output


def test_one_that_does_not_become_ready_fails_the_gang_where_nobody_catches_it(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "not_ready_and_not_caught")
    run.fails(START_S)
    told = run.node_log("work", 0, "stderr")
    assert re.search(r"The first failure was on node 1 \(.*\): server exited with code 1:\n\s+\| +no room", told), told


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "exits with 0"])
def test_one_that_ends_later_fails_the_gang(flow_run: FlowRunner, how: str) -> None:
    run = flow_run(FLOW, "--how", "ends")
    pids = serving(run, 1)
    if how == "killed":
        kill_process(pids["server"])
        ending = r"server was killed by SIGKILL \(out of memory\?\)"
    else:
        (run.folder / "end").touch()
        ending = "server exited with code 0, though the gang still needs it"
    run.fails(END_S)
    for node in (0, 1):
        told = run.node_log("work", node, "stderr")
        assert re.search(rf"The first failure was on node 1 \(.*\): {ending}", told), told
    assert "listening on port 17 and more" in run.node_log("work", 0, "stderr"), "its last output"
    assert run.left(END_S) == []


@pytest.mark.big
def test_one_that_is_stopped_is_told(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "ends")
    pids = serving(run, 1)
    with stopped(pids["server"]):
        run.fails(END_S)
        assert re.search(r"on node 1 \(.*\): server \(process \d+\) has been stopped \(SIGSTOP\) for \d+ s", run.output)
        assert run.left(END_S) == []


@pytest.mark.slow
@pytest.mark.parametrize("node", [0, 1])
def test_it_ends_with_a_task_that_is_killed(flow_run: FlowRunner, node: int) -> None:
    run = flow_run(FLOW, "--how", "ends")
    kill_process(serving(run, node)["task"])
    run.fails(END_S)
    assert run.left(END_S) == []


def test_a_gang_that_stops_does_not_wait_for_one_to_become_ready(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "stop_meanwhile")
    assert "ValueError: the other node's" in run.fails(START_S)
    assert run.left(END_S) == []

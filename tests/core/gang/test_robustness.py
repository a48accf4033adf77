"""What users, their code and their machines do that nobody plans for: the gang still ends, and still says why."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import metaflow  # noqa: F401 - finds the extension
import pytest
from support.faults import kill_process
from support.flows import FlowRun, FlowRunner

from metaflow_extensions.gang.core.guard.coordinator.root_cause import failure_report
from metaflow_extensions.gang.core.guard.failure_record import Failure

START_S = 90.0
"""For a flow to be up, on a machine that is busy with other tests."""

END_S = 25.0
"""Tells an end from a hang."""

FLOW = """
import multiprocessing, os, resource, signal, subprocess, sys, threading, time
from metaflow import FlowSpec, Parameter, current, gang, step
from metaflow_extensions.gang.core.exceptions import PortTaken
from metaflow_extensions.gang.core.gang.launch_plan import LaunchPlan, Process

def limit(name, value):
    resource.setrlimit(name, (value, resource.getrlimit(name)[1]))

if "step" in sys.argv and "work" in sys.argv:
    if os.environ.get("FILE_SIZE"):
        limit(resource.RLIMIT_FSIZE, int(os.environ["FILE_SIZE"]))
    if os.environ.get("OPEN_FILES"):
        soft, hard = os.environ["OPEN_FILES"].split()
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft), int(hard)))

# Killed while a process that it started holds its output open, as a loader of data does.
VICTIM = '''
import os, subprocess
subprocess.Popen(["sleep", "30"], start_new_session=True)
open("dying", "w").close()
os.kill(os.getpid(), 9)
'''
PEER = '''
import os, sys, time
while not os.path.exists("dying"):
    time.sleep(0.02)
time.sleep(0.1)
sys.exit("RuntimeError: Connection closed by peer")
'''

def rank(number, code):
    return Process((sys.executable, "-c", code), dict(os.environ), title=f"rank {number}", rank=number)

def sleep(_):
    time.sleep(1000)

class Robust(FlowSpec):
    how = Parameter("how")
    nodes = Parameter("nodes", default=2)

    @step
    def start(self):
        self.next(self.work, num_parallel=self.nodes)

    @gang(all_nodes_started_timeout=60)
    @step
    def work(self):
        gang = current.gang
        gang.barrier()
        print(f"ready {gang.node_index} task={os.getpid()} guard={gang._link.guard_pid};", flush=True)
        gang.barrier()  # or one might fail before the other has begun
        getattr(self, "do_" + self.how)(gang, gang.node_index)
        self.next(self.join)

    def do_nothing(self, gang, node):
        pass

    def do_held(self, gang, node):
        gang.launch(LaunchPlan((rank(node, VICTIM if node else PEER),), peer_lost=("Connection closed by peer",)))

    def do_held_beside(self, gang, node):
        ranks = (rank(2, "import time; time.sleep(60)"),) if node else (rank(0, PEER), rank(1, VICTIM))
        gang.launch(LaunchPlan(ranks, peer_lost=("Connection closed by peer",)))

    def do_left_running(self, gang, node):
        threading.Thread(target=lambda: gang.run(["sleep", "1000"]), daemon=True).start()
        time.sleep(0.3)

    def do_wrong_env(self, gang, node):
        gang.run(["true"], env={"EPOCHS": 3}) if node else gang.barrier()

    def do_long_message(self, gang, node):
        if node:
            raise ValueError("begin " + "x" * 9_000_000)
        gang.barrier()

    def do_pool(self, gang, node):
        pool = multiprocessing.get_context("fork").Pool(2)
        pool.map_async(sleep, range(2))
        print("pool is up", flush=True)
        time.sleep(1000)

    def do_signals(self, gang, node):
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        code = "import signal; print('interrupt:', signal.getsignal(signal.SIGINT).__name__)"
        gang.run([sys.executable, "-c", code])
        os.makedirs(f"at/{node}/below", exist_ok=True)
        os.chdir(f"at/{node}")
        gang.run(["sh", "-c", 'echo "at ${PWD##*/}"'], cwd="below")

    def do_guard_asked_to_end(self, gang, node):
        os.kill(gang._link.guard_pid, signal.SIGTERM)
        time.sleep(0.3)
        gang.barrier()

    def do_non_blocking(self, gang, node):
        if node == 0:
            os.set_blocking(1, False)
        gang.barrier()
        for number in range(30000 * node):
            print(f"line {number:06d} of node 1")

    def do_much_output(self, gang, node):
        limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)  # the guard keeps what it has
        for number in range(20000 * node):
            print(f"line {number:06d} of node 1")

    def do_log_not_stored(self, gang, node):
        if node:
            root = os.environ["METAFLOW_DATASTORE_SYSROOT_LOCAL"]
            task = os.path.join(root, ".metaflow", "Robust", current.run_id, "work", current.task_id)
            os.makedirs(os.path.join(task, "0.runtime_stdout.log"))
            raise ValueError("the real cause")
        gang.barrier()

    def do_exit(self, gang, node):
        sys.exit(0) if node == 0 else gang.barrier()

    def do_cannot_be_stored(self, gang, node):
        if node:
            self.lock = threading.Lock()

    def do_second_interrupt(self, gang, node):
        if node:
            time.sleep(1000)
        hits = []

        def profile(frame, event, argument):
            if event == "call" and frame.f_code.co_name in ("_failed", "_shield") and not hits:
                hits.append(event)
                os.kill(os.getpid(), signal.SIGINT)

        sys.setprofile(profile)
        raise ValueError("the first one")

    def do_orphans(self, gang, node):
        read, write = os.pipe()
        for _ in range(20):
            subprocess.run(["sh", "-c", "sh -c 'sleep 0.1; exit' &"], pass_fds=[write])
        os.close(write)
        os.read(read, 1)  # the end of the last of them
        shown = subprocess.run(["ps", "-eo", "ppid=,state="], capture_output=True, text=True).stdout.splitlines()
        print(f"zombies of node {node}: {[line.split() for line in shown].count([str(os.getpid()), 'Z'])};", flush=True)

    def do_fork(self, gang, node):
        if node == 0:
            child = os.fork()
            if not child:
                try:
                    gang.barrier()
                except Exception as error:
                    print("child:", error, flush=True)
                os._exit(0)
            os.waitpid(child, 0)
        assert gang.all_gather(node) == [0, 1]

    def do_port_taken_before_start(self, gang, node):
        time.sleep(node)
        code = "import time; time.sleep(1000)" if node else "import sys; sys.exit('Address in use')"
        try:
            gang.launch(LaunchPlan((rank(node, code),), port_taken="Address in use", key="first"))
        except PortTaken:
            print(f"node {node} knows", flush=True)
        gang.barrier()

    def do_strange_text(self, gang, node):
        if node:
            while not os.path.exists("deaf"):
                time.sleep(0.02)
            raise ValueError("a name \\udcff that is no UTF-8")
        while True:
            try:
                open("deaf", "w").close()
                while True:
                    time.sleep(1000)
            except BaseException:
                pass

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Robust()
"""


def finish(run: FlowRun) -> str:
    """The output of a run that has begun its gang, and that has to fail."""
    run.wait_for("ready 0", START_S)
    return run.fails(END_S)


@pytest.mark.parametrize(("how", "node"), [("held", 1), ("held_beside", 0)])
def test_a_killed_rank_is_the_cause_though_its_output_is_held_open(flow_run: FlowRunner, how: str, node: int) -> None:
    run = flow_run(FLOW, "--how", how)
    finish(run)
    told = rf"The first failure was on node {node} \(.*\): rank 1 was killed by SIGKILL"
    assert re.search(told, run.node_log("work", 1 - node, "stderr"))
    assert "rank 1 was killed by SIGKILL" in run.node_log("work", node, "stderr")


@pytest.mark.slow
def test_a_command_that_a_thread_left_running_ends_with_the_step(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "left_running")
    run.wait_for("ready 0", START_S)
    assert run.wait(END_S) == 0, run.dump()


def test_an_environment_that_is_no_text_is_a_mistake_told_in_a_sentence(flow_run: FlowRunner) -> None:
    assert "env={'EPOCHS': 3}): names and values are strings" in finish(flow_run(FLOW, "--how", "wrong_env"))


def test_a_message_of_any_length_is_told(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "long_message")
    finish(run)
    assert "The first failure was on node 1 (" in run.output
    assert "the step's body raised ValueError: begin xxx" in run.output
    assert "SIGKILL" not in run.output


def test_many_failures_of_one_moment_fit_a_message() -> None:
    told = failure_report([Failure(node, "exception", "raised", 1.0, "trace\n" * 2000) for node in range(1024)], {})
    assert len(told) < 500_000
    assert "node 0: raised" in told and "1016 more, on nodes 8, 9, 10" in told


def test_what_a_killed_control_had_forked_is_ended(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "pool")
    control = run.wait_for(re.compile(r"ready 0 task=(\d+)"), START_S)
    run.wait_for("pool is up", START_S, count=2)
    kill_process(int(control[1]))
    run.fails(END_S)


@pytest.mark.slow
def test_processes_get_the_signals_and_folders_that_they_would_get_without_us(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "signals").ok(START_S)
    for node in (0, 1):
        log = run.node_log("work", node)
        assert "interrupt: default_int_handler" in log
        assert "at below" in log


@pytest.mark.slow
def test_a_guard_that_is_asked_to_end_stays_for_its_task(flow_run: FlowRunner) -> None:
    flow_run(FLOW, "--how", "guard_asked_to_end").ok(START_S)


@pytest.mark.slow
def test_a_stream_made_non_blocking_loses_nothing(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "non_blocking").ok(START_S)
    assert len(re.findall(r"line \d{6} of node 1\n", run.output)) == 30000


@pytest.mark.slow
def test_a_full_disk_ends_a_log_and_not_the_gang(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "much_output", env={"FILE_SIZE": "200000"}).ok(START_S)
    assert "[gang] The stored log of this node's stdout ends here: File too large." in run.output
    assert "line 019999 of node 1" in run.output
    assert "line 001000 of node 1" in run.node_log("work", 1)


def test_logs_that_cannot_be_stored_do_not_hide_the_cause(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "log_not_stored")
    finish(run)
    log = run.node_log("work", 0, "stderr")
    assert "The logs of the other nodes could not be stored: IsADirectoryError" in log
    assert "the step's body raised ValueError: the real cause" in log


@pytest.mark.slow
def test_an_exit_of_controls_body_is_no_success(flow_run: FlowRunner) -> None:
    assert "the step's body raised SystemExit: 0" in finish(flow_run(FLOW, "--how", "exit"))


@pytest.mark.slow
def test_an_artifact_that_cannot_be_stored_is_told_by_control(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "cannot_be_stored")
    finish(run)
    log = run.node_log("work", 0, "stderr")
    assert "node 1" in log and "exited with code 1 after its body, while Metaflow stored its state" in log
    assert "Cannot pickle" in log and "SIGKILL" not in log


@pytest.mark.slow
def test_a_second_interrupt_does_not_cut_short_the_first_end(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "second_interrupt")
    finish(run)
    assert "the step's body raised ValueError: the first one" in run.node_log("work", 1, "stderr")
    assert "KeyboardInterrupt" not in run.output


@pytest.mark.slow
def test_what_a_body_leaves_behind_does_not_become_its_zombies(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "orphans").ok(START_S)
    assert sorted(re.findall(r"zombies of node \d: \d+;", run.output)) == [f"zombies of node {n}: 0;" for n in (0, 1)]


@pytest.mark.slow
def test_a_forked_process_cannot_take_the_steps_answers(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "fork")
    run.wait_for("ready 0", START_S)
    assert run.wait(END_S) == 0, run.dump()
    assert "child: current.gang belongs to the step's own process" in run.output


@pytest.mark.slow
def test_a_low_soft_limit_of_open_files_is_raised_for_the_guard(flow_run: FlowRunner) -> None:
    flow_run(FLOW, "--how", "nothing", "--nodes", "8", env={"OPEN_FILES": "25 1000"}).ok(START_S)


def test_too_few_descriptors_are_told(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "nothing", "--nodes", "8", env={"OPEN_FILES": "25 25"})
    run.fails(START_S)
    assert re.search(r"A gang of 8 nodes needs \d+ open files .* the hard limit there is 25 \(ulimit -Hn\)", run.output)


def test_no_node_at_all_is_a_mistake_told_in_a_sentence(flow_run: FlowRunner) -> None:
    assert "num_parallel has to be 1 or more" in flow_run(FLOW, "--how", "nothing", "--nodes", "0").fails(START_S)


@pytest.mark.slow
def test_a_port_taken_elsewhere_before_the_launch_here_is_known_here(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, "--how", "port_taken_before_start")
    run.wait_for("ready 0", START_S)
    assert run.wait(END_S) == 0, run.dump()
    assert "node 0 knows" in run.output and "node 1 knows" in run.output


@pytest.mark.slow
def test_text_that_is_no_utf8_is_told(flow_run: FlowRunner) -> None:
    output = finish(flow_run(FLOW, "--how", "strange_text"))
    assert re.search(r"\[gang\] The first failure was on node 1 .*ValueError: a name \? that is no UTF-8", output)


INTERRUPTED = """
import os, signal, sys
import metaflow
from metaflow_extensions.gang.core.guard_client.link import Link

class TimeIsUp(Exception):
    pass

def raise_it(*_):
    raise TimeIsUp

link = Link()
signal.signal(signal.SIGALRM, raise_it)
os.kill(link.guard_pid, signal.SIGSTOP)
signal.alarm(1)
try:
    link.request("gather", b"x" * 4_000_000, seq=0, kind="barrier()", entry={}, root=None)
except TimeIsUp:
    os.kill(link.guard_pid, signal.SIGCONT)
    print(link.request("port", exact=None)[0]["port"] > 0, flush=True)
    link.request("bye")
link.close()
"""


def test_a_request_that_a_signal_cut_short_spoils_none_that_follows(tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        try:
            output, _ = process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            pytest.fail("the guard still waits for the rest of the request that was cut short")
    assert output == "True\n" and process.returncode == 0


LATE_INTERRUPT = """
import os, signal, tempfile
import metaflow
from metaflow_extensions.gang.core.exceptions import GangInterrupt
from metaflow_extensions.gang.core.guard.host.private_folder import in_base
from metaflow_extensions.gang.core.gang.launch_plan import LaunchPlan, Process
from metaflow_extensions.gang.core.guard_client.link import INTERRUPT, STACKS, Link

link = Link()
private = in_base("gangs", lambda below: tempfile.mkdtemp(prefix="late-0-", dir=below))
signals = {"interrupt_signal": int(INTERRUPT), "stacks_signal": int(STACKS)}
link.request("setup", node=0, folder=private, gang_id="late", **signals)
signal.pthread_sigmask(signal.SIG_BLOCK, {INTERRUPT})
plan = LaunchPlan((Process(("sh", "-c", "exit 3"), dict(os.environ), title="rank 1"),))
try:
    header, _ = link.request("launch", plan=plan.to_json())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {INTERRUPT})
    print(header["failed"]["exit_code"], link.stopped, flush=True)
except GangInterrupt:
    print("interrupted", flush=True)
link.request("unwound")
link.close()
"""


def test_an_interrupt_that_comes_after_a_failure_of_ones_own_does_not_hide_it(tmp_path: Path) -> None:
    script = tmp_path / "late.py"
    script.write_text(LATE_INTERRUPT)
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=END_S)
    assert ended.stdout == "3 True\n", ended.stderr

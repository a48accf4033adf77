"""The tests' own tools: a leak detector that finds no leak, or a host that is not one, would prove nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from support import leaks
from support.faults import kill_process, squatter, stopped
from support.flows import FlowRunner
from support.hosts import Hosts
from support.processes import descendants, read_process, send_signal, wait_gone
from support.requirements import find_tool, require_tool
from support.trees import Tree

PYTHON = sys.executable
FAILED = pytest.fail.Exception

LEAVES_AN_ORPHAN = """
import subprocess, sys
child = subprocess.Popen(["sleep", "60"], start_new_session=True, env={})
print("orphan", child.pid, flush=True)
"""

PLAIN_GANG = """
import os, signal, sys
from metaflow import FlowSpec, current, parallel, step

class PlainGang(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @parallel
    @step
    def work(self):
        self.node = current.parallel.node_index
        print(f"node {self.node} is here", flush=True)
        if "wait" in os.environ.get("PLAIN_GANG", ""):
            signal.pause()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.nodes = sorted(node.node for node in inputs)
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    PlainGang()
"""


def stock_path() -> dict[str, str | None]:
    """Metaflow's own @parallel starts its workers with the ``python`` of PATH."""
    return {"PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}"}


# ---------------------------------------------------------------- leaks


def test_a_clean_block_passes() -> None:
    with leaks.no_leaks():
        subprocess.run(["true"], check=True)
        thread = threading.Thread(target=time.sleep, args=(0.2,))
        thread.start()  # ends within the deadline: no leak


def test_a_process_left_is_found_named_and_ended() -> None:
    with pytest.raises(FAILED, match=r"sleep 61"), leaks.no_leaks(deadline=0.2):
        child = subprocess.Popen(["sleep", "61"], start_new_session=True)
    assert child.wait(5) == -signal.SIGKILL


def test_an_orphan_is_found_by_its_mark() -> None:
    with pytest.raises(FAILED, match=r"sleep 62"), leaks.no_leaks(deadline=0.2):
        argv = ["sh", "-c", "setsid sleep 62 >/dev/null 2>&1 & echo $!"]
        pid = int(subprocess.run(argv, capture_output=True, check=True).stdout)
        assert pid not in {process.pid for process in descendants(os.getpid())}
    assert not wait_gone([pid], 5)


def test_an_orphan_of_a_gang_is_found_without_its_mark() -> None:
    env = {"PATH": os.environ["PATH"], leaks.GANG_ID: "a gang"}
    with pytest.raises(FAILED, match=r"sleep 63"), leaks.no_leaks(deadline=0.2):
        argv = ["sh", "-c", "setsid sleep 63 >/dev/null 2>&1 & echo $!"]
        pid = int(subprocess.run(argv, env=env, capture_output=True, check=True).stdout)
    assert not wait_gone([pid], 5)


def test_a_process_of_another_test_is_not_accused() -> None:
    argv = ["sh", "-c", "setsid sleep 64 >/dev/null 2>&1 & echo $!"]
    with leaks.no_leaks(deadline=0.2):
        env = {**os.environ, leaks.MARK: "another test", leaks.GANG_ID: "its gang"}
        pid = int(subprocess.run(argv, env=env, capture_output=True, check=True).stdout)
    process = read_process(pid)
    assert process is not None and send_signal(process, signal.SIGKILL)


def test_a_port_left_open_is_found() -> None:
    with pytest.raises(FAILED, match=r"listening socket of the test process: port (\d+)"):  # noqa: SIM117
        with leaks.no_leaks(deadline=0.2):
            server = socket.create_server(("127.0.0.1", 0))
    server.close()


def test_the_port_of_a_leaked_process_is_named() -> None:
    source = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"
    argv = [PYTHON, "-c", source + "; time.sleep(60)"]
    children = []
    with pytest.raises(FAILED) as failure, leaks.no_leaks(deadline=0.2):
        children.append(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
        port = int(children[0].stdout.readline()) if children[0].stdout else 0
    assert f"listening on port {port} on" in str(failure.value)
    children[0].communicate(timeout=5)


def test_a_thread_left_is_found() -> None:
    release = threading.Event()
    with pytest.raises(FAILED, match=r"thread 'left alone'"), leaks.no_leaks(deadline=0.2):
        thread = threading.Thread(target=release.wait, name="left alone", daemon=True)
        thread.start()
    release.set()
    thread.join(5)


def test_files_and_shared_memory_left_are_found() -> None:
    base = leaks.base_folder()
    existed = base.exists()
    base.mkdir(exist_ok=True)
    with pytest.raises(FAILED) as failure, leaks.no_leaks(deadline=0.2):
        handle, file = tempfile.mkstemp(dir=base)
        os.close(handle)
        handle, shared = tempfile.mkstemp(dir="/dev/shm")
        os.close(handle)
    os.unlink(file)
    os.unlink(shared)
    if not existed:
        base.rmdir()
    assert f"file {file}" in str(failure.value) and f"shared memory {shared}" in str(failure.value)


def test_a_failure_in_the_block_is_the_one_that_shows() -> None:
    with pytest.raises(ZeroDivisionError), leaks.no_leaks(deadline=0.1):
        child = subprocess.Popen(["sleep", "65"])
        raise ZeroDivisionError
    assert child.wait(5) == -signal.SIGKILL


# ---------------------------------------------------------------- trees


def test_a_tree_gives_output_and_exit_code() -> None:
    with Tree([PYTHON, "-c", "import sys; print('é' * 100000); sys.stderr.write('bad'); sys.exit(3)"]) as tree:
        assert tree.wait(20) == 3
        assert tree.stdout == "é" * 100000 + "\n" and tree.stderr == "bad"
        assert tree.left(5) == []


def test_waiting_for_text_that_never_comes_ends_with_the_command() -> None:
    with Tree([PYTHON, "-c", "print('something else')"]) as tree:
        begin = time.monotonic()
        with pytest.raises(AssertionError, match="something else"):
            tree.wait_for("the word", timeout=60)
        assert time.monotonic() - begin < 30


def test_an_orphan_without_environment_is_below_its_tree() -> None:
    with Tree([PYTHON, "-c", LEAVES_AN_ORPHAN]) as tree:
        orphan = int(tree.wait_for(re.compile(r"orphan (\d+)\n"), 20).group(1))
        assert tree.wait(20) == 0
        assert [process.pid for process in tree.left(0.2)] == [orphan]
        assert tree.find("sleep 60")
    assert wait_gone([orphan], 0) == []


def test_signals_reach_the_command_alone_or_its_group() -> None:
    script = 'trap "exit 7" INT; sleep 60 & echo ready; wait'
    with Tree(["sh", "-c", script]) as tree:
        tree.wait_for("ready", 10)
        tree.signal(signal.SIGINT)
        assert tree.wait(10) == 7
        assert [process.command for process in tree.left(0.1)] == [("sleep", "60")]
    with Tree(["bash", "-c", "sleep 60; true"]) as tree:
        while not tree.find("^sleep 60$"):
            assert tree.exit_code is None
            time.sleep(0.01)
        tree.signal(signal.SIGTERM, group=True)
        assert tree.wait(10) == -signal.SIGTERM
        assert tree.left(5) == []


def test_a_missing_program_is_an_exit_code_with_a_message() -> None:
    with Tree(["/no/such/program"]) as tree:
        assert tree.wait(10) == 127
        assert "/no/such/program: No such file" in tree.stderr


# ---------------------------------------------------------------- faults


def test_a_stopped_process_is_stopped_and_continues() -> None:
    with Tree(["sleep", "60"]) as tree:
        with stopped(tree.pid):
            deadline = time.monotonic() + 5
            while (process := read_process(tree.pid)) and process.state != "T":
                assert time.monotonic() < deadline
                time.sleep(0.01)
        process = read_process(tree.pid)
        assert process is not None and process.state != "T"
        kill_process(tree.pid)
        assert tree.wait(5) == -signal.SIGKILL
        with pytest.raises(AssertionError, match="had ended"):
            kill_process(tree.pid)


def test_a_squatter_holds_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    with squatter(port), pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", port), reuse_port=False)


def test_a_missing_tool_fails_in_ci_and_skips_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert require_tool("sh") == find_tool("sh")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(FAILED, match=r"'no-such-tool' is not installed \(Debian package nothing\)\."):
        require_tool("no-such-tool", "nothing")
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception, match="no-such-tool"):
        require_tool("no-such-tool")


# ---------------------------------------------------------------- flows


@pytest.mark.slow
def test_a_flow_is_run_watched_and_looked_into(flow_run: FlowRunner) -> None:
    run = flow_run(PLAIN_GANG, env=stock_path()).ok(120)
    assert run.artifact("join", "nodes") == [0, 1]
    assert sorted(run.node_tasks("work")) == [0, 1]
    assert "node 0 is here" in run.node_log("work", 0)
    assert run.left(5) == []


@pytest.mark.slow
def test_the_tasks_of_a_gang_are_found_and_a_flow_that_hangs_is_ended(flow_run: FlowRunner) -> None:
    run = flow_run(PLAIN_GANG, env={**stock_path(), "PLAIN_GANG": "wait"})
    run.wait_for("is here", 60, count=2)
    tasks = run.tasks("work")
    assert sorted(tasks) == [0, 1]
    assert run.exit_code is None and run.run_id
    run.close()
    assert wait_gone([*tasks.values(), run.pid], 0) == []


# ---------------------------------------------------------------- hosts

SERVER = """
import socket, sys
with socket.create_server((sys.argv[1], 5000)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    connection.sendall(socket.gethostname().encode())
    connection.close()
"""
CLIENT = "import socket, sys; print(socket.create_connection((sys.argv[1], 5000), 2).recv(100).decode())"
PING = "import socket, sys; socket.create_connection((sys.argv[1], 5000), 1)"


def test_hosts_are_machines_of_their_own(tmp_path: Path) -> None:
    with Hosts(3) as hosts:
        assert [host.run(["hostname"]).stdout.strip() for host in (hosts[i] for i in range(3))] == [
            "gang0",
            "gang1",
            "gang2",
        ]
        (Path("/dev/shm") / tmp_path.name).touch()
        try:
            assert hosts[0].run(["ls", "/dev/shm"]).stdout == ""
        finally:
            (Path("/dev/shm") / tmp_path.name).unlink()
        assert hosts[1].run(["getent", "hosts", "gang2"]).stdout.split()[0] == hosts[2].address
        assert hosts[0].run(["pwd"], cwd=tmp_path).stdout.strip() == str(tmp_path)
        assert hosts[0].processes() == [], "each command has ended"


def test_hosts_reach_each_other_until_a_link_is_cut() -> None:
    with Hosts(2) as hosts:
        with hosts[0].popen([PYTHON, "-c", SERVER, hosts[0].address], stdout=subprocess.PIPE) as server:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"
            assert hosts[1].run([PYTHON, "-c", CLIENT, hosts[0].address]).stdout.strip() == "gang0"
            assert server.wait(10) == 0
        refused = hosts[1].run([PYTHON, "-c", PING, "gang0"], check=False)
        assert "ConnectionRefusedError" in refused.stderr
        hosts.cut(0)
        silent = hosts[1].run([PYTHON, "-c", PING, "gang0"], check=False)
        assert "TimeoutError" in silent.stderr or "No route to host" in silent.stderr
        hosts.heal(0)
        assert "ConnectionRefusedError" in hosts[1].run([PYTHON, "-c", PING, "gang0"], check=False).stderr


def test_a_killed_host_takes_its_processes_along_and_spares_the_others() -> None:
    with Hosts(2) as hosts:
        victim = hosts[0].popen(["sh", "-c", "setsid sleep 70 & sleep 70"], stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while len(running := hosts[0].processes()) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        hosts.kill(0)
        assert wait_gone([process.pid for process in running], 5) == []
        assert victim.wait(5) != 0
        assert hosts[1].run(["hostname"]).stdout.strip() == "gang1"


def test_a_host_may_have_a_tmp_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "shared").write_text("seen")
    with tempfile.NamedTemporaryFile(dir="/tmp") as foreign, Hosts(1, private_tmp=True, keep=[tmp_path]) as hosts:
        assert hosts[0].run(["cat", str(tmp_path / "shared")], cwd="/").stdout == "seen"
        hosts[0].run(["touch", str(tmp_path / "back"), "/tmp/its-own"], cwd=tmp_path)
        assert (tmp_path / "back").exists() and not Path("/tmp/its-own").exists()
        assert hosts[0].run(["test", "-e", foreign.name], cwd="/", check=False).returncode == 1


def test_hosts_are_gone_even_after_a_failure() -> None:
    pids: list[int] = []
    with pytest.raises(ZeroDivisionError), Hosts(2) as hosts:
        pids += [hosts[0].pid, hosts[1].pid]
        hosts[0].popen(["sleep", "71"])
        raise ZeroDivisionError
    assert wait_gone(pids, 5) == []

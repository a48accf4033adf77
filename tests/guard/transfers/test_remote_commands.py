"""Commands on other nodes: the program that is called in place of ssh, real guards that serve it, and who may not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from support.faults import kill_process, stopped
from support.processes import all_processes
from support.remote import remote_gang
from test_files_between_nodes import Middle

from metaflow_extensions.gang.core.gang.node import Node
from metaflow_extensions.gang.core.guard.remote_command import client as caller_module
from metaflow_extensions.gang.core.guard.remote_command.client import Refusal, find
from metaflow_extensions.gang.core.guard.remote_command.node_server import node_key
from metaflow_extensions.gang.core.guard.tls import endpoints
from metaflow_extensions.gang.core.guard.tls.link import BulkError, client_context
from metaflow_extensions.gang.core.remote_shell.channel import node_names

HOST = "127.0.0.1"
WAIT_S = 30.0
"""Tells "comes" from "hangs", on a machine that is busy with other tests."""

# A task without Metaflow's runtime: it forms a gang as the lifecycle does, and then does what its stdin says.
TASK = """
import json, os, socket, sys, tempfile
import metaflow
from metaflow_extensions.gang.core.gang.gang import Gang
from metaflow_extensions.gang.core.gang.node import Node
from metaflow_extensions.gang.core.exceptions import GangInterrupt
from metaflow_extensions.gang.core.guard.host.private_folder import in_base
from metaflow_extensions.gang.core.guard_client.link import INTERRUPT, STACKS, Link
from metaflow_extensions.gang.core.remote_shell.channel import ChannelShell

node, count, gang_id, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
os.environ["METAFLOW_GANG_ID"] = f"{gang_id}.{node}"
link = Link()
private = in_base("gangs", lambda below: tempfile.mkdtemp(prefix=f"{gang_id}-{node}-", dir=below))
signals = {"interrupt_signal": int(INTERRUPT), "stacks_signal": int(STACKS)}
# The kernel gives up a connection after twice that.
link.request("setup", node=node, folder=private, gang_id=gang_id, settings={"lost_host_timeout": 4}, **signals)
about = {"timeout": 60, "host": "127.0.0.1", "identity": ["flow", "run", "step", "1", 0]}
if node == 0:
    opened, _ = link.request("open", num_nodes=count, **about)
    where = {key: opened[key] for key in ("address", "port", "secret")}
    print(json.dumps(where), flush=True)
else:
    where = json.loads(sys.stdin.readline())
joined, _ = link.request("join", info={"hostname": socket.gethostname(), "cpus": 1, "gpus": 0}, **about, **where)
nodes = (Node(at, *(n[key] for key in ("address", "hostname", "cpus", "gpus"))) for at, n in enumerate(joined["nodes"]))
gang = Gang(node, tuple(nodes), private, link)
cwd = os.path.join(folder, f"folder of {node}")
os.makedirs(cwd)
channel = ChannelShell.form(gang, {**os.environ, "WHOSE": f"node {node}'s"}, cwd)
print(json.dumps({"rsh": channel.rsh, "hops": channel.hops, "cwd": cwd, "secret": where["secret"]}), flush=True)
try:
    for order in sys.stdin:
        if order == "fail\\n":
            link.request("fail", kind="exception", text="was told to fail", detail="")
        elif order == "hold\\n":
            link.request("hold")
        else:
            link.request("done")
            link.quiet()
            if node == 0:
                link.request("finish")
            link.request("bye")
            if order == "linger\\n":
                print("said bye", flush=True)
                sys.stdin.read()
            break
except GangInterrupt:
    link.quiet()
    link.request("unwound")
link.close()
"""


# What a guard does for a program, in a process of its own.
CALL = """
import json, sys
package = type(sys)("guard")
package.__path__ = [sys.argv[1]]
sys.modules["guard"] = package
from guard.remote_command.client import call
sys.exit(call(json.loads(sys.argv[2]), bytes.fromhex(sys.argv[3]), sys.argv[4:], (0, 1, 2)))
"""


class LocalGang:
    """Nodes of this machine, without a flow; ``rsh`` is node 0's program."""

    def __init__(self, folder: Path, count: int = 2, stderr: IO[str] | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        environment = {**os.environ, "TMPDIR": str(folder)}
        self.tasks = [
            subprocess.Popen(
                [sys.executable, "-c", TASK, str(node), str(count), os.urandom(4).hex(), str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                text=True,
            )
            for node in range(count)
        ]
        try:
            where = self._line(0)
            for node in range(1, count):
                self.say(node, where)
            self.told: list[dict[str, Any]] = [json.loads(self._line(node)) for node in range(count)]
        except BaseException:
            self.kill()
            raise
        self.rsh: str = self.told[0]["rsh"]
        self.key = node_key(bytes.fromhex(self.told[0]["secret"]))
        self.ports: list[int] = [port for _, _, port in self.told[0]["hops"]]

    def _line(self, node: int) -> str:
        output = self.tasks[node].stdout
        assert output is not None
        line = output.readline()
        assert line, f"node {node} has ended"
        return line

    def say(self, node: int, order: str) -> None:
        stdin = self.tasks[node].stdin
        assert stdin is not None
        stdin.write(order.rstrip("\n") + "\n")
        stdin.flush()

    def said(self, node: int) -> str:
        return self._line(node)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """Node 0's program, with pipes for all three streams unless ``options`` say otherwise."""
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen([self.rsh, *words], **{**streams, **options})

    def run(self, *words: str, input: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
        """The same, to its end."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if "stdin" not in options:
            streams |= {"input": input}  # type: ignore[dict-item]
        return subprocess.run([self.rsh, *words], timeout=WAIT_S, **{**streams, **options})

    def by_way_of(self, port: int, node: int = 1) -> list[str]:
        """A command line whose call finds ``node`` behind another port: somebody stands in between."""
        nodes = [{"names": [f"node{node}"], "address": HOST, "port": port}]
        package = os.path.dirname(os.path.dirname(str(caller_module.__file__)))
        return [sys.executable, "-I", "-S", "-c", CALL, package, json.dumps(nodes), self.key.hex(), f"node{node}"]

    def close(self) -> None:
        """A good end, which leaves nothing."""
        for node in range(len(self.tasks)):
            self.say(node, "end")
        for task in self.tasks:
            assert task.wait(WAIT_S) == 0
            close_pipes(task)
        wait(lambda: not list(self.folder.glob("metaflow-gang-*/gangs/*")))

    def kill(self) -> None:
        for task in self.tasks:
            task.kill()
            task.wait()
            close_pipes(task)


def close_pipes(process: subprocess.Popen[Any]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(BrokenPipeError):
            if pipe is not None:
                pipe.close()


@pytest.fixture(scope="module")
def gang(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGang]:
    """One for all tests that leave it as it was; its folder has a name that a shell would take apart."""
    gang = LocalGang(tmp_path_factory.mktemp("gang") / 'a\'; echo foo; $HOME "x"')
    try:
        yield gang
        gang.close()
    finally:
        gang.kill()


@pytest.fixture
def own_gang(tmp_path: Path) -> Iterator[LocalGang]:
    """One of the test's own, to be stopped."""
    gang = LocalGang(tmp_path / "own")
    try:
        yield gang
    finally:
        gang.kill()


def wait(done: Callable[[], object], seconds: float = WAIT_S) -> None:
    """For what another process does."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"not done after {seconds} s"
        time.sleep(0.01)


def running(word: str) -> list[int]:
    """Processes that are not this one and have ``word`` in their command, agents and what started them left out."""
    return [
        process.pid
        for process in all_processes().values()
        if not process.zombie
        and process.pid != os.getpid()
        and any(word in part for part in process.command)
        and not any("shim.py" in part or part.endswith("/rsh") for part in process.command)
    ]


def unique() -> str:
    """Seconds to sleep that no other process sleeps."""
    return f"1000.{int.from_bytes(os.urandom(4), 'big')}"


# Streams


def test_output_comes_byte_for_byte_on_both_streams(gang: LocalGang, tmp_path: Path) -> None:
    data = {name: os.urandom(2 << 20) for name in ("out", "err")}
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    done = gang.run("node1", f"cat {tmp_path}/err >&2 & cat {tmp_path}/out; wait")
    assert (done.returncode, done.stdout == data["out"], done.stderr == data["err"]) == (0, True, True)


def test_stdin_goes_there_whole(gang: LocalGang) -> None:
    data = os.urandom(5_000_001)
    done = gang.run("node1", "cat; echo ended >&2", input=data)
    assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"ended\n")


def test_stdin_may_be_a_file_the_null_device_closed_or_not_wanted(gang: LocalGang, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(os.urandom(300_000))
    with open(tmp_path / "input", "rb") as file:
        done = gang.run("node1", "cat", stdin=file)
    assert done.stdout == (tmp_path / "input").read_bytes()
    assert gang.run("node1", "cat; echo over", stdin=subprocess.DEVNULL).stdout == b"over\n"
    closed = subprocess.run(
        ["sh", "-c", 'exec "$0" node1 "cat; echo over" <&-', gang.rsh], capture_output=True, timeout=WAIT_S
    )
    assert (closed.returncode, closed.stdout, closed.stderr) == (0, b"over\n", b"")
    silent = gang.start("-n", "node1", "cat; echo over")  # its stdin stays open
    assert silent.stdout is not None and silent.stdout.read() == b"over\n"
    silent.communicate(timeout=WAIT_S)
    assert silent.returncode == 0


def test_closed_outputs_are_no_reason_to_fail(gang: LocalGang, tmp_path: Path) -> None:
    command = ["sh", "-c", 'exec "$0" node1 "echo lost; echo lost >&2; touch \'$1\'" >&- 2>&-', gang.rsh]
    assert subprocess.run([*command, str(tmp_path / "done")], timeout=WAIT_S).returncode == 0
    assert (tmp_path / "done").exists()


def test_a_dialogue(gang: LocalGang) -> None:
    """What one side writes reaches the other at once, not when there is more."""
    talk = gang.start("node1", "while read line; do echo got $line; done; echo end")
    assert talk.stdin is not None and talk.stdout is not None
    for word in (b"one", b"two"):
        talk.stdin.write(word + b"\n")
        talk.stdin.flush()
        assert talk.stdout.readline() == b"got " + word + b"\n"
    talk.stdin.close()
    assert talk.stdout.read() == b"end\n"
    assert talk.wait(WAIT_S) == 0
    close_pipes(talk)


def test_input_that_nobody_reads_holds_up_nothing(gang: LocalGang) -> None:
    done = gang.run("node1", "exec <&-; echo without", input=bytes(3_000_000))
    assert (done.returncode, done.stdout) == (0, b"without\n")
    assert gang.run("node1", "exit 3", input=bytes(3_000_000)).returncode == 3


@pytest.mark.big
def test_a_reader_who_pauses_longer_than_the_kernel_waits_is_not_lost(gang: LocalGang) -> None:
    """TCP_USER_TIMEOUT is 8 s here, for a window that stays closed too; and nothing else may wait for this reader."""
    slow = gang.start("node1", "head -c 3000000 /dev/zero; echo over >&2")
    held = gang.start("node1", "sleep 10; wc -c")
    assert held.stdin is not None and slow.stdout is not None
    os.set_blocking(held.stdin.fileno(), False)
    written = held.stdin.write(bytes(50_000)) or 0
    begun = time.monotonic()
    assert gang.run("node1", "echo meanwhile").stdout == b"meanwhile\n"
    held.stdin.close()
    assert held.stdout is not None
    assert int(held.stdout.read()) == written
    assert time.monotonic() - begun > 9, "the reader has paused long enough"
    assert len(slow.stdout.read()) == 3_000_000
    for process in (slow, held):
        assert process.wait(WAIT_S) == 0
        close_pipes(process)


def test_who_wanted_the_output_has_gone(gang: LocalGang) -> None:
    seconds = unique()
    process = gang.start("node1", f"sleep {seconds} & yes")
    assert process.stdout is not None
    assert process.stdout.read(4) == b"y\ny\n"
    process.stdout.close()
    assert process.wait(WAIT_S) == 255
    close_pipes(process)
    wait(lambda: not running(seconds))


# How it runs and ends


def test_exit_codes_and_signals(gang: LocalGang) -> None:
    for command, code in (("true", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)):
        assert gang.run("node1", command).returncode == code, command
    missing = gang.run("node1", "/no/such/program")
    assert missing.returncode == 127 and b"/no/such/program" in missing.stderr


def test_it_runs_in_the_other_tasks_environment_and_folder(gang: LocalGang) -> None:
    for node in (0, 1):
        done = gang.run(f"node{node}", 'echo "$WHOSE $OWN"; pwd', env={**os.environ, "OWN": "caller", "WHOSE": "mine"})
        assert done.stdout.decode() == f"node {node}'s \n{gang.told[node]['cwd']}\n", done.stderr


def test_a_command_reaches_the_shell_as_it_is(gang: LocalGang) -> None:
    hostile = "a b'c\"d\\e$HOME`x`;&|*é\u2028\n-n"
    quoted = "'" + hostile.replace("'", "'\\''") + "'"
    assert gang.run("node1", f"printf %s {quoted}").stdout.decode() == hostile
    assert gang.run("node1", b"printf %s \xff\xfe".decode(errors="surrogateescape")).stdout == b"\xff\xfe"
    assert gang.run("node1", "echo", "two  words", "$((1+1))").stdout == b"two words 2\n"
    long = "x" * 100_000
    assert gang.run("node1", f"echo {long} | wc -c").stdout == b"100001\n"


def test_a_command_that_the_system_does_not_take(gang: LocalGang, tmp_path: Path) -> None:
    done = gang.run("node1", "x" * 100_000, "y" * 99_999)
    assert done.returncode == 255 and b"The command has 200000 bytes; 131071 is the limit" in done.stderr
    with endpoints.connect(HOST, gang.ports[1], gang.key) as link:
        link.send_header({"run": True})
        link.send(b"\x04\0\0\0\x03a\0b")
        reply = b""
        with contextlib.suppress(BulkError):
            link.timeout(WAIT_S)
            while b"\x05\0\0\0\x03126" not in reply:
                reply += link.receive(1000)
    assert b"null byte" in reply


@pytest.mark.parametrize(
    "words",
    [
        "-x node1",
        "-x -n -q -T node1",
        "-l root node1",
        "-lroot node1",
        "-o StrictHostKeyChecking=no -oBatchMode=yes -p 22 -i key -F file node1",
        "-qxl root -2 -a -x node1",
        "root@node1",
        "node1 -x -l root",
        "-x -- node1",
        "NODE1",
    ],
)
def test_options_of_ssh_and_rsh_are_passed_over(gang: LocalGang, words: str) -> None:
    done = gang.run(*words.split(), "echo", "-n", "$WHOSE")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"node 1's", b"")


def test_what_cannot_be_run_is_told_in_a_sentence(gang: LocalGang) -> None:
    for words, says in (
        (["elsewhere", "true"], "No node of this gang is called 'elsewhere'. Its nodes are: node0 or 127.0.0.1"),
        (["node1"], "A host and a command are needed, not only: node1"),
        ([], "A host and a command are needed"),
        (["-Z", "node1", "true"], "The option -Z is none that is known here."),
    ):
        done = gang.run(*words)
        assert (done.returncode, done.stdout) == (255, b""), words
        assert done.stderr.startswith(b"[gang] ") and done.stderr.count(b"\n") == 1
        assert says in done.stderr.decode()
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    done = subprocess.run([*gang.by_way_of(port), "true"], capture_output=True, timeout=WAIT_S)
    assert done.returncode == 255
    assert f"[gang] Cannot connect to {HOST} port {port}: Connection refused. Check that" in done.stderr.decode()


def test_what_the_command_leaves_running_is_ended_with_it(gang: LocalGang) -> None:
    seconds = unique()
    done = gang.run("node1", f"setsid sleep {seconds} & echo started")
    assert (done.returncode, done.stdout) == (0, b"started\n")
    assert not running(seconds)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_when_the_caller_ends_the_command_ends_with_all_it_started(gang: LocalGang, number: int) -> None:
    seconds = unique()
    caller = gang.start("node1", f"setsid sleep {seconds} & setsid sh -c 'sleep {seconds}; true' & echo up; wait")
    assert caller.stdout is not None and caller.stdout.readline() == b"up\n"
    wait(lambda: len(running(seconds)) >= 4)
    caller.send_signal(number)
    assert caller.wait(WAIT_S) == -number
    caller.communicate()
    wait(lambda: not running(seconds))


def test_a_caller_that_does_not_read_holds_up_nobody(gang: LocalGang) -> None:
    seconds = unique()
    caller = gang.start("node1", f"sleep {seconds} & yes")
    assert caller.stdout is not None and caller.stdout.read(2) == b"y\n"
    with stopped(caller.pid):
        for _ in range(3):
            assert gang.run("node1", "echo served").stdout == b"served\n"
        kill_process(caller.pid)
    caller.communicate()
    wait(lambda: not running(seconds))


def test_many_at_once(gang: LocalGang) -> None:
    callers = [gang.start(f"node{index % 2}", f"head -c {index * 1000} /dev/zero; exit {index}") for index in range(12)]
    for index, caller in enumerate(callers):
        output, _ = caller.communicate(timeout=WAIT_S)
        assert (len(output), caller.returncode) == (index * 1000, index)


# The end of the gang


def test_the_gangs_stop_ends_command_and_caller(own_gang: LocalGang) -> None:
    seconds = unique()
    caller = own_gang.start("node1", f"setsid sleep {seconds} & echo up; wait")
    assert caller.stdout is not None and caller.stdout.readline() == b"up\n"
    begun = time.monotonic()
    own_gang.say(0, "hold")
    own_gang.say(1, "fail")
    _, errors = caller.communicate(timeout=WAIT_S)
    assert caller.returncode in (143, 255), errors
    assert time.monotonic() - begun < 10
    wait(lambda: not running(seconds))
    own_gang.kill()
    wait(lambda: not list(own_gang.folder.glob("metaflow-gang-*/gangs/*")))


def test_a_task_that_has_said_goodbye_starts_nothing(own_gang: LocalGang) -> None:
    own_gang.say(1, "linger")
    assert own_gang.said(1) == "said bye\n"
    done = own_gang.run("node1", "true")
    assert done.returncode == 255
    assert done.stderr == b"[gang] Node 1 starts no command any more: its task has ended.\n"


def test_a_node_that_dies_is_told_by_the_caller(own_gang: LocalGang) -> None:
    seconds = unique()
    caller = own_gang.start("node1", f"echo $PPID; exec sleep {seconds}")
    assert caller.stdout is not None
    guard = int(caller.stdout.readline())
    kill_process(guard)
    _, errors = caller.communicate(timeout=WAIT_S)
    assert caller.returncode == 255
    assert f"{HOST} port {own_gang.ports[1]}" in errors.decode() and errors.startswith(b"[gang] ")
    wait(lambda: not running(seconds))


def test_the_key_is_this_users_alone_and_goes_with_the_gang(own_gang: LocalGang) -> None:
    folder = Path(own_gang.rsh).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(os.stat(own_gang.rsh).st_mode) == 0o700
    files = [path for path in own_gang.folder.rglob("*") if path.is_file()]
    assert own_gang.rsh in map(str, files)
    assert not any(own_gang.key.hex().encode() in path.read_bytes() for path in files), "it is in the guards alone"
    assert own_gang.key != bytes.fromhex(own_gang.told[0]["secret"]), "the key to the hub is another"
    caller = own_gang.start("node1", "cat /proc/$PPID/cmdline /proc/$PPID/environ; env; cat")
    assert caller.stdin is not None and caller.stdout is not None
    seen = [Path(f"/proc/{caller.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    caller.stdin.close()
    seen.append(caller.stdout.read())
    assert not any(own_gang.key.hex().encode() in text for text in seen)
    assert caller.wait(WAIT_S) == 0
    close_pipes(caller)
    own_gang.close()
    assert not folder.exists()


# Who may not


def attempt(port: int, data: bytes, tls: bool) -> bytes:
    """What a server answers to somebody who just sends ``data``."""
    sock = socket.create_connection((HOST, port), WAIT_S)
    received = b""
    with contextlib.suppress(OSError):
        if tls:
            sock = client_context().wrap_socket(sock)
        sock.sendall(data)
        while more := sock.recv(65536):
            received += more
    sock.close()
    return received


def request(command: str) -> bytes:
    """A request as a caller sends it who has proved the key."""
    header = b'{"run": true}'
    text = command.encode()
    return len(header).to_bytes(4, "big") + header + b"\x04" + len(text).to_bytes(4, "big") + text


def test_without_the_key_nothing_runs(gang: LocalGang, tmp_path: Path) -> None:
    bait = request(f"touch {tmp_path}/ran")
    port = gang.ports[1]
    for shown in (b"", bytes(32), os.urandom(32)):
        assert len(attempt(port, shown + bait, tls=True)) in (0, 32)  # its own proof, or a reset came first
    for garbage in (bait, b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 5000, os.urandom(5000), b"\x16\x03\x01"):
        assert b"touch" not in attempt(port, garbage, tls=False)
    for key in (os.urandom(32), bytes.fromhex(gang.told[0]["secret"])):
        with pytest.raises(BulkError, match="does not know this gang's secret"):
            endpoints.connect(HOST, port, key)
    assert gang.run("node1", f"touch {tmp_path}/rightly").returncode == 0
    assert os.listdir(tmp_path) == ["rightly"]


def test_another_gangs_key_opens_nothing(gang: LocalGang, own_gang: LocalGang, tmp_path: Path) -> None:
    for one, other in ((gang, own_gang), (own_gang, gang)):
        done = subprocess.run(
            [*one.by_way_of(other.ports[1]), f"touch {tmp_path}/ran"], capture_output=True, timeout=WAIT_S
        )
        assert done.returncode == 255
        assert "does not know this gang's secret: another gang or program uses this port" in done.stderr.decode()
    assert not (tmp_path / "ran").exists()


def through(gang: LocalGang, middle: Middle, command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run([*gang.by_way_of(middle.port), command], input=stdin, capture_output=True, timeout=WAIT_S)
    middle.join(WAIT_S)
    return done


def test_a_recorded_session_cannot_be_played_again(gang: LocalGang, tmp_path: Path) -> None:
    middle = Middle(gang.ports[1], lambda middle, way, data: data)
    done = through(gang, middle, f"echo once >> {tmp_path}/log; echo secret words")
    assert (done.returncode, done.stdout) == (0, b"secret words\n")
    assert b"secret words" not in middle.seen["up"] + middle.seen["down"]
    assert len(middle.seen["up"]) > 300
    attempt(gang.ports[1], middle.seen["up"], tls=False)
    attempt(gang.ports[1], middle.seen["up"], tls=True)
    assert gang.run("node1", f"cat {tmp_path}/log").stdout == b"once\n"


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("how", ["changed", "repeated", "left out"])
def test_a_record_that_is_not_as_it_was_sent_ends_both(gang: LocalGang, way: str, how: str) -> None:
    done: list[bool] = []

    def interfere(middle: Middle, direction: str, data: bytes) -> bytes:
        if direction != way or len(middle.seen[way]) < 500_000 or done:
            return data
        done.append(True)
        if how == "changed":
            at = len(data) // 2
            return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        return data + data if how == "repeated" else b""

    seconds = unique()
    sent = os.urandom(2_000_000)
    middle = Middle(gang.ports[1], interfere)
    ended = through(gang, middle, f"sleep {seconds} & cat; wait", sent)
    assert done and ended.returncode == 255
    assert ended.stderr.decode().startswith("[gang] ") and f"{HOST} port {middle.port}" in ended.stderr.decode()
    assert len(ended.stdout) < len(sent) and sent.startswith(ended.stdout), "nothing false was believed"
    wait(lambda: not running(seconds))


def test_a_connection_that_is_cut_is_no_exit_code(gang: LocalGang) -> None:
    middle = Middle(gang.ports[1], lambda middle, way, data: None if len(middle.seen["down"]) > 400_000 else data)
    ended = through(gang, middle, "head -c 1000000 /dev/zero")
    assert ended.returncode == 255 and ended.stderr.startswith(b"[gang] ")


def test_who_opens_the_encryption_is_noticed_before_anything_is_said(gang: LocalGang, tmp_path: Path) -> None:
    middle = Middle(gang.ports[1], lambda middle, way, data: data, tls=tmp_path)
    done = through(gang, middle, f"touch {tmp_path}/ran")
    assert done.returncode == 255
    assert "something between the two nodes decrypts the connection" in done.stderr.decode()
    assert b"touch" not in middle.seen["up"] and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x09\0\0\0\0",  # a kind that is none
        b"\x04\xff\xff\xff\xff",  # longer than any command
        b"\x03\0\0\0\x01\0",
        b"\x04\0\0\0\x04true\x04\0\0\0\x04true",
        b"\x04\0\0\0\x08sleep 60" + b"\x00\0\0\x40\0" + bytes(16384) + b"\x00\0\0\x40\0" + bytes(16384),
    ],
)
def test_frames_that_mean_nothing_end_the_connection(gang: LocalGang, data: bytes) -> None:
    """Or, the last ones, are taken: what a member sends must not hurt the node that serves it."""
    with endpoints.connect(HOST, gang.ports[1], gang.key) as link:
        link.send_header({"run": True})
        link.send(data)
        if b"sleep" not in data:
            link.timeout(WAIT_S)
            with pytest.raises(BulkError, match=r"closed the connection|broke"):
                while True:
                    link.receive(1000)
    assert gang.run("node1", "echo served").stdout == b"served\n"


# Names


def nodes(*hosts: tuple[str, str]) -> Sequence[Node]:
    return [Node(index, address, hostname, 1, 0) for index, (address, hostname) in enumerate(hosts)]


def test_names_of_nodes_have_one_owner() -> None:
    assert node_names(nodes(("10.0.0.1", "a.example"), ("10.0.0.2", "B"))) == [
        ["10.0.0.1", "a.example", "a", "node0"],
        ["10.0.0.2", "b", "node1"],
    ]
    shifted = node_names(nodes(("10.0.0.1", "node1"), ("10.0.0.2", "node0")))
    assert shifted == [["10.0.0.1", "node1"], ["10.0.0.2", "node0"]], "a host's own name comes first"
    local = node_names(nodes((HOST, "node1"), (HOST, "node1")))
    assert local == [["node0", HOST], ["node1"]], "a local run's nodes are told apart by nothing else"


def test_the_complaint_about_an_unknown_host_stays_short() -> None:
    gang = [{"names": [f"10.0.0.{index}"]} for index in range(1, 101)]
    with pytest.raises(Refusal, match=r"Its nodes are: 10\.0\.0\.1, .*10\.0\.0\.8, and 92 more\.$"):
        find("10.0.1.1", gang)
    assert find("user@[10.0.0.9]", gang) == gang[8]


# Real hosts

FLOW = """
import os, subprocess, sys
from metaflow import FlowSpec, current, gang, step
from metaflow_extensions.gang.core.remote_shell.channel import ChannelShell

class Remote(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @gang
    @step
    def work(self):
        gang = current.gang
        channel = ChannelShell.form(gang, dict(os.environ), os.getcwd())
        if gang.is_control:
            def ask(host, command, **options):
                done = subprocess.run([channel.rsh, host, command], capture_output=True, text=True, **options)
                return f"{done.returncode} {done.stdout.strip()} {done.stderr.strip()}"
            for node in gang.nodes:
                for host in (node.address, node.hostname, f"node{node.index}"):
                    print(f"{host} is:", ask(host, "hostname; echo $MF_PARALLEL_NODE_INDEX; cat", input="sent"))
            print("elsewhere is:", ask("gang3", "hostname"))
            waiting = subprocess.Popen([channel.rsh, "gang2", "sleep 1000"], stderr=subprocess.PIPE, text=True)
            print("ready", flush=True)
            print("lost:", waiting.communicate()[1].strip(), waiting.returncode, flush=True)
        gang.barrier()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Remote()
"""


@pytest.mark.slow
def test_real_hosts_by_any_of_their_names(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all()
        tasks[0].wait_for("ready")
        output = tasks[0].output
        for index in range(3):
            for host in (gang.hosts[index].address, f"gang{index}", f"node{index}"):
                assert f"{host} is: 0 gang{index}\n{index}\nsent" in output, tasks[0].dump()
        assert "elsewhere is: 255  [gang] No node of this gang is called 'gang3'" in output
        gang.kill_host(2)
        for task in tasks[:2]:
            task.fails(WAIT_S)
            assert "The first failure was on node 2" in task.output

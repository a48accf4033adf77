"""The mesh of private sshds over hosts with a network between them: who gets in, what a command finds, what is left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from support.hosts import Account
from support.machine.accounts import account, open_folder
from support.remote import START_S, RemoteGang, remote_gang
from support.requirements import require_packages, require_tool
from support.snapshots import looks

from metaflow_extensions.gang.core.remote_shell.ssh_config import can_be_spelled, session_script

END_S = 25.0
"""Tells an end from a hang."""

CUT_S = 15.0
"""For a client of ssh to notice that the link is cut: 9 s, on a machine that is not busy."""

FLOW = """
import dataclasses, json, os, socket, time
from metaflow import FlowSpec, current, gang, step
from metaflow_extensions.gang.core.gang.gang import Gang
from metaflow_extensions.gang.core.remote_shell.ssh import SshShell
from metaflow_extensions.gang.core.remote_shell.ssh_checks import SshUnusable, missing_tools

HOSTILE = "a 'b' \\"c\\" $HOME `id` \\\\ \\n * ; é \\udcff"

def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.02)

def tell(name, value):
    with open(name + ".new", "w") as file:
        json.dump(value, file)
    os.rename(name + ".new", name)

class Unlucky(Gang):
    "Another program takes the first port that it gets."
    def free_port(self):
        port = super().free_port()
        if not hasattr(Unlucky, "squatter"):
            Unlucky.squatter = socket.create_server((self.nodes[self.node_index].address, port))
        return port

class Mesh(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @gang(all_nodes_started_timeout=60)
    @step
    def work(self):
        gang, node = current.gang, current.gang.node_index
        folder = os.path.abspath(f"node {node}'s")
        os.makedirs(folder, exist_ok=True)
        env = {**os.environ, "HOSTILE": HOSTILE, "NODE": str(node), "not-a-name": "1", "UID": "x", "PPID": "x"}
        for round in range(int(os.environ.get("ROUNDS", "0"))):
            wait_for(f"round-{round}")
            try:
                SshShell.form(gang, env, folder)
                tell(f"told-{round}-{node}", "")
            except SshUnusable as error:
                tell(f"told-{round}-{node}", [str(error), missing_tools()])
        if "ROUNDS" in os.environ:
            wait_for("mended")
        if os.environ.get("UNLUCKY") == str(node):
            gang = Unlucky(**{field.name: getattr(gang, field.name) for field in dataclasses.fields(gang)})
        started = time.monotonic()
        mesh = SshShell.form(gang, env, folder)
        tell(f"mesh-{node}", {**dataclasses.asdict(mesh), "seconds": time.monotonic() - started})
        wait_for("finish")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Mesh()
"""

ATTACKS = """
import json, sys
import paramiko

address, port, user, key_file = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
key = paramiko.Ed25519Key.from_private_key_file(key_file)
told = {}

def attempt(name, log_in):
    transport = paramiko.Transport((address, port))
    try:
        transport.start_client(timeout=20)
        log_in(transport)
        told[name] = "in" if transport.is_authenticated() else "out"
    except paramiko.SSHException as error:
        told[name] = f"out: {type(error).__name__} {getattr(error, 'allowed_types', '')}"
    finally:
        transport.close()

attempt("right key", lambda t: t.auth_publickey(user, key))
attempt("another key", lambda t: t.auth_publickey(user, paramiko.ECDSAKey.generate()))
attempt("password", lambda t: t.auth_password(user, "secret"))
attempt("empty password", lambda t: t.auth_password(user, ""))
attempt("none", lambda t: t.auth_none(user))
attempt("interactive", lambda t: t.auth_interactive(user, lambda *_: []))
for name in ("nobody", "root", "ganger", "sshd"):
    if name != user:
        attempt("as " + name, lambda t, name=name: t.auth_publickey(name, key))

transport = paramiko.Transport((address, port))
transport.start_client(timeout=20)
transport.auth_publickey(user, key)

def session(name, ask):
    try:
        channel = transport.open_session(timeout=20)
        channel.settimeout(20)
        ask(channel)
        output = channel.makefile("rb").read() + channel.makefile_stderr("rb").read()
        told[name] = f"{channel.recv_exit_status()} {output.decode()}"
    except paramiko.SSHException as error:
        told[name] = f"refused: {error}"

session("command", lambda c: c.exec_command("echo $NODE"))
session("shell", lambda c: c.invoke_shell())
session("sftp", lambda c: c.invoke_subsystem("sftp"))
session("terminal", lambda c: c.get_pty())
session("x11", lambda c: c.request_x11())
for name, target in (("forwarding", address), ("to its loopback", "127.0.0.1")):
    try:
        transport.open_channel("direct-tcpip", (target, port), ("127.0.0.1", 1), timeout=20)
        told[name] = "open"
    except paramiko.SSHException as error:
        told[name] = f"refused: {error}"
try:
    transport.request_port_forward("", 0)
    told["listening"] = "open"
except paramiko.SSHException as error:
    told["listening"] = f"refused: {error}"
transport.close()
print(json.dumps(told))
"""


def told(gang: RemoteGang, folder: Path, name: str) -> list[Any]:
    """What each node's body has told under a name, once all have."""
    files = [folder / f"{name}-{node}" for node in range(gang.num_nodes)]
    deadline = time.monotonic() + START_S
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, "\n".join(log.read_text() for log in folder.glob("task-*.log"))
        time.sleep(0.02)
    return [json.loads(file.read_text()) for file in files]


def environment(user: Account | None) -> dict[str, str]:
    home = "/root" if user is None else str(user.home)
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": home, "FOREIGN": "does not travel"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["root", "ganger"])
def test_nodes_run_commands_on_each_other_and_nobody_else_does(name: str) -> None:
    for tool, package in (("ssh", "openssh-client"), ("ssh-keygen", "openssh-client"), ("sshd", "openssh-server")):
        require_tool(tool, package)
    with open_folder() as folder:
        user = account(name, folder)
        home = Path("/root") if user is None else Path(user.home)
        watched = (Path("/etc"), Path("/root/.ssh"), home / ".ssh", home / ".bashrc")
        with remote_gang(folder, FLOW, 3, account=user) as gang:
            before = looks(*watched)
            tasks = gang.start_all()
            meshes = told(gang, folder, "mesh")
            print(f"as {name}: formed in {max(mesh['seconds'] for mesh in meshes):.2f} s")
            assert looks(*watched) == before, "also while it runs"

            def ssh(here: int, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
                # From another folder and with another environment than the step's.
                argv = [meshes[here]["rsh"], *words]
                env = environment(user)
                return gang.hosts[here].run(argv, env=env, cwd="/", user=user and user.name, check=False, **options)

            show = "import os, sys; sys.stdout.write(ascii([os.getcwd(), dict(os.environ), os.getuid()]))"
            for here in range(3):
                for there in range(3):
                    done = ssh(here, meshes[here]["hosts"][there], f'{sys.executable} -I -c "{show}"')
                    assert (done.returncode, done.stderr) == (0, ""), done
                    cwd, env, uid = eval(done.stdout)
                    assert cwd == str(folder / f"node {there}'s")
                    assert uid == (0 if user is None else user.uid)
                    assert env["HOSTILE"] == "a 'b' \"c\" $HOME `id` \\ \n * ; é \udcff"
                    assert (env["NODE"], env["HOME"]) == (str(there), str(home) if user else os.environ["HOME"])
                    assert "FOREIGN" not in env and "SSH_CONNECTION" not in env and "not-a-name" not in env
                    assert env["METAFLOW_GANG_ID"].endswith(f".{there}"), "it ends with that node's gang"
            for other in (gang.hosts[1].name, gang.hosts[1].address):
                assert ssh(0, other, "hostname").stdout == "gang1\n"
            assert ssh(0, "node2", "echo out; echo err >&2; exit 7").returncode == 7
            assert ssh(0, "node2", "kill -9 $$").returncode != 0
            argv = [meshes[1]["rsh"], "node0", "wc -c; echo end"]
            piped = gang.hosts[1].popen(
                argv, env=environment(user), cwd="/", user=user and user.name,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            output, _ = piped.communicate("é" * 500_000, timeout=END_S)
            assert output == "1000000\nend\n" and piped.returncode == 0

            keys = check_files(meshes, 0 if user is None else user.uid)
            attack(gang, folder, meshes, user, ssh)
            for host in (gang.hosts[index] for index in range(3)):
                shown = "\n".join(" ".join(process.command) for process in host.processes())
                assert "sshd" in shown and not [key for key in keys if key in shown]
            if user is None:
                (folder / "finish").touch()
                outputs = [task.ok() for task in tasks]
            else:
                tasks[0].kill()
                outputs = [task.fails(END_S) for task in tasks[1:]]
                assert "on node 0 (gang0): the node's task was killed by SIGKILL" in outputs[0]
            for output in outputs:
                assert "PRIVATE KEY" not in output and not [key for key in keys if key in output]
        assert looks(*watched) == before
        assert not [path for mesh in meshes if (path := Path(mesh["config"]).parent).exists()]


def check_files(meshes: list[dict[str, Any]], uid: int) -> list[str]:
    """The modes of all that lies in the private folders; a line of each private key, which each node has for itself."""
    keys: list[str] = []
    for mesh in meshes:
        folder = Path(mesh["config"]).parent
        for path in (folder, *folder.iterdir()):
            mode, owner = path.stat().st_mode & 0o777, path.stat().st_uid
            wanted = 0o700 if path.is_dir() or path.name in ("ssh", "session") else 0o600
            assert owner == uid and mode == (0o644 if path.name.endswith(".pub") else wanted), path
        for name in ("user_key", "host_key"):
            keys.append((folder / name).read_text().splitlines()[2])
            holders = [path.name for path in folder.iterdir() if keys[-1].encode() in path.read_bytes()]
            assert holders == [name]
        assert (folder / "authorized_keys").read_text().count("restrict ssh-ed25519 ") == len(meshes)
    assert len(set(keys)) == 2 * len(meshes)
    return keys


def attack(gang: RemoteGang, folder: Path, meshes: list[dict[str, Any]], user: Account | None, ssh: Any) -> None:
    """An independent client against node 0's sshd; then, for our own client, a node that is not what it was."""
    require_packages("paramiko")
    name = user.name if user else "root"
    config = Path(meshes[1]["config"])
    port = int(re.findall(r"Port (\d+)", config.read_text())[0])
    argv = [sys.executable, "-c", ATTACKS, gang.hosts[0].address, str(port), name, str(config.with_name("user_key"))]
    seen = json.loads(gang.hosts[1].run(argv, cwd="/").stdout)
    assert seen.pop("right key") == "in"
    assert seen.pop("command") == "0 0\n"
    assert seen.pop("shell").startswith("1 [gang] This sshd runs commands, and no shell.")
    assert "['publickey']" in seen["none"] and "['publickey']" in seen["password"]
    refused = {what for what, how in seen.items() if how.startswith(("out", "refused"))}
    assert (
        refused == set(seen) and {"another key", "as nobody", "forwarding", "sftp", "listening", "terminal"} <= refused
    )

    # The same node with another host key: a server of our own making that would let our client in.
    forged = folder / "forged"
    subprocess.run([require_tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(forged)], check=True)
    server = Path(meshes[0]["config"]).with_name("sshd_config")
    (folder / "forged_config").write_text(
        re.sub(r"HostKey .*", f"HostKey {forged}", server.read_text()).replace(f"{port}", f"{port + 1}")
    )
    for path in (forged, folder / "forged_config"):
        os.chown(path, user.uid if user else 0, -1)
    text = config.read_text()
    argv = [require_tool("sshd"), "-D", "-e", "-f", str(folder / "forged_config")]
    with gang.hosts[0].popen(argv, user=user and user.name, cwd="/", stderr=subprocess.PIPE) as forger:
        assert forger.stderr is not None
        line = forger.stderr.readline()
        assert "Server listening" in line, line
        try:
            config.write_text(text.replace(f"Port {port}", f"Port {port + 1}"))
            changed = ssh(1, "node0", "echo in")
        finally:
            config.write_text(text)
            for process in gang.hosts[0].processes():
                if "forged_config" in " ".join(process.command):
                    os.kill(process.pid, 15)
    assert changed.returncode == 255 and changed.stdout == ""
    assert "Host key verification failed" in changed.stderr
    assert ssh(1, "node0", "echo in").stdout == "in\n"
    unknown = ssh(1, "-p", str(port), "-o", f"HostName={gang.hosts[0].address}", "elsewhere", "echo in")
    assert unknown.returncode == 255 and "Host key verification failed" in unknown.stderr


@pytest.mark.slow
def test_odd_folders_and_taken_ports_do_not_hinder_it_and_a_cut_link_ends_a_command() -> None:
    for tool in ("ssh", "sshd"):
        require_tool(tool, "openssh-server")
    with open_folder() as folder, remote_gang(folder, FLOW, 2) as gang:
        odd = folder / "b 'c' \"d\" %d $e ~ \\ ;"
        odd.mkdir()
        tasks = gang.start_all(UNLUCKY="1", TMPDIR=str(odd))
        meshes = told(gang, folder, "mesh")
        assert meshes[0]["config"].startswith(f"{odd}/")
        argv = [meshes[0]["rsh"], "node1", "echo up; exec sleep 1000"]
        with gang.hosts[0].popen(argv, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
            assert client.stdout is not None and client.stdout.readline() == "up\n"
            started = time.monotonic()
            gang.hosts.cut(1)
            assert client.wait(CUT_S) == 255
            print(f"a cut link was noticed after {time.monotonic() - started:.1f} s")
        for task in tasks:
            task.fails(END_S)
        gang.wait_until_gone()  # a guard ends after its task, and removes the folder then
        assert not list(odd.glob("*/gangs/*"))


@pytest.mark.slow
def test_a_node_that_cannot_take_part_is_told_on_all_nodes_and_they_go_on() -> None:
    sshd = require_tool("sshd", "openssh-server")
    with open_folder() as folder, remote_gang(folder, FLOW, 2) as gang:
        lines = Path("/etc/passwd").read_text().splitlines()
        others = [line for line in lines if not line.startswith("root:")]
        files: Mapping[str, list[str]] = {
            "nobody-is-0": others,
            "nologin": ["root:x:0:0:root:/root:/bin/false", *others],
            "locked": ["root:!locked::0:99999:7:::"],
        }
        for name, content in files.items():
            (folder / name).write_text("\n".join(content) + "\n")
        troubles = (
            ("/dev/null", sshd, "sshd is not installed. Add OpenSSH's client and server"),
            (folder / "nobody-is-0", "/etc/passwd", "there is none for user id 0"),
            (folder / "nologin", "/etc/passwd", "that of root, /bin/false, runs none"),
            (folder / "locked", "/etc/shadow", "whose password is locked, and that of root is"),
        )
        tasks = gang.start_all(ROUNDS=str(len(troubles) + 1))

        def form(number: int) -> str:
            """What all nodes say of one attempt."""
            (folder / f"round-{number}").touch()
            said = told(gang, folder, f"told-{number}")
            assert said[0][0] == said[1][0]
            assert [lacking for _, lacking in said] == [[], ["sshd"] if number == 0 else []]
            return str(said[0][0])

        for number, (instead, place, expected) in enumerate(troubles):
            gang.hosts[1].run(["mount", "--bind", str(instead), place], cwd="/")
            text = form(number)
            gang.hosts[1].run(["umount", place], cwd="/")
            assert text.startswith('The nodes cannot reach each other by ssh; with transport="channel" they do without')
            assert ". Node 1: " in text and expected in text, text
        shared = folder / "tmp" / "gang1"
        shared.chmod(0o777)
        text = form(len(troubles))
        assert f"Node 1: others may replace what is in {shared}, and so the keys below it" in text, text
        shared.chmod(0o1777)
        (folder / "mended").touch()
        told(gang, folder, "mesh")
        (folder / "finish").touch()
        for task in tasks:
            task.ok()


def test_any_shell_reads_the_sessions_script(tmp_path: Path) -> None:
    odd = {"A": "line\nnext 'q' \"d\" $X `y` \\", "IFS": "x", "OPTIND": "no number", "EUID": "5", "a-b": "", "_": "z"}
    folder = tmp_path / "it's $HOME"
    folder.mkdir()
    script = tmp_path / "session"
    script.write_bytes(os.fsencode(session_script(odd, str(folder))))
    for shell in ("sh", "bash"):
        env = {"SSH_ORIGINAL_COMMAND": 'pwd; printf %s "$A"; exit 3', "MAIL": "x", "PATH": os.environ["PATH"]}
        done = subprocess.run([require_tool(shell), str(script)], env=env, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (3, f"{folder}\n{odd['A']}", "")
    for path, spelled in (("/tmp/a b\"c'%d$e~\\", True), ("/tmp/${HOME}", False), ("/tmp/a\nb", False)):
        assert can_be_spelled(path) is spelled

"""A mesh of private sshds: each node of a gang may run commands on each other, by keys made for this attempt alone.

The daemon runs as the user of the step, on the gang's own address, and serves nobody else. Everything lies in a private
folder below the gang's, which goes when the gang ends, as do the daemon and the sessions. Private keys never leave
their node. The one thing outside is /run/sshd, an empty folder that root's sshd insists on (it is not the user's, nor
made by others): it is made where it is missing and stays, since another gang, or the machine's own sshd, may have begun
to need it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..exceptions import GangException, ProcessFailed, ToolMissing
from ..gang.gang import Gang
from ..gang.launch_plan import Process
from ..guard.processes.process_table import GANG_MARKER
from ..guard.text import last_lines
from .hostfile import write_private
from .ssh_config import (
    Peer,
    authorized_keys,
    can_be_spelled,
    client_config,
    client_script,
    host_name,
    known_hosts,
    server_config,
    session_script,
)

TOOLS = ("ssh", "ssh-keygen", "sshd")

REACH_S = 20.0
"""For the first login at another node: ssh itself waits 10 s for the connection."""

READY_S = 20.0
"""For sshd to listen; it takes some ten milliseconds."""

PORTS_TRIED = 10

_NOTHING = subprocess.DEVNULL

_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin")
# What the programs of OpenSSH need of the step's environment: no secrets, and not the libraries of an environment of
# Python, with whose OpenSSL the system's programs may not run.
_KEPT = ("PATH", "LD_PRELOAD", "NSS_WRAPPER_PASSWD", "NSS_WRAPPER_GROUP", GANG_MARKER)


class SshUnusable(ToolMissing):
    """Some node cannot take part in a mesh of ssh; the message says which, why, and what to do. Raised on all nodes."""


def missing_tools() -> list[str]:
    """The programs of OpenSSH that this node lacks, of "ssh", "ssh-keygen" and "sshd"."""
    return [name for name in TOOLS if _find(name) is None]


def _find(name: str) -> str | None:
    """The absolute path of a program; an ordinary user's PATH leaves out where sshd is."""
    folders = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.isabs(folder)]
    return shutil.which(name, path=os.pathsep.join([*folders, *_SYSTEM_FOLDERS]))


def _tool(name: str) -> str:
    path = _find(name)
    if path is None:
        raise SshUnusable(
            f"{name} is not installed. Add OpenSSH's client and server (openssh-client, openssh-server) to the image."
        )
    return path


def _account() -> pwd.struct_passwd:
    """This user's entry in the password database; raises :class:`SshUnusable` where sshd would not let them in."""
    uid = os.geteuid()
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        raise SshUnusable(
            f"OpenSSH works for users with an entry in /etc/passwd, and there is none for user id {uid}. Add one to "
            "the image."
        ) from None
    shell = account.pw_shell or "/bin/sh"
    try:
        asked = [shell, "-c", "exit 7"]
        works = subprocess.run(asked, stdin=_NOTHING, capture_output=True, check=False, timeout=REACH_S).returncode == 7
    except (OSError, subprocess.TimeoutExpired):
        works = False
    if not works:
        raise SshUnusable(
            f"sshd runs commands by the user's login shell, and that of {account.pw_name}, {shell}, runs none. Give "
            "the user another, as /bin/sh, in /etc/passwd."
        )
    if uid == 0 and _is_locked(account.pw_name):
        raise SshUnusable(
            f"sshd lets nobody in whose password is locked, and that of {account.pw_name} is ('!' in /etc/shadow). Run "
            "as another user, or put '*' in its place in the image: no password either, but not locked."
        )
    return account


def _is_locked(user: str) -> bool:
    try:
        with open("/etc/shadow", encoding="utf-8", errors="replace") as shadow:
            return any(line.startswith(f"{user}:!") for line in shadow)
    except OSError:
        return False


def _strict_modes(folder: str) -> bool:
    """Whether sshd may check for itself that nobody else can replace the files in ``folder``.

    It takes no folder below one that others may write to, and so none below /tmp, where nobody can rename what is not
    theirs (the sticky bit), and where gangs have theirs. So the same is checked here, with the sticky bit regarded, and
    sshd's own check left out only where that bit is why it would refuse.
    """
    strict = True
    path = os.path.realpath(folder)
    while True:
        found = os.stat(path)
        if found.st_uid not in (0, os.geteuid()) or (found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX):
            raise SshUnusable(
                f"others may replace what is in {path}, and so the keys below it ({folder}). Set TMPDIR to a folder "
                "that only this user and root may write to, or that has the sticky bit, as /tmp."
            )
        strict = strict and not found.st_mode & 0o022
        if path == os.path.dirname(path):
            return strict
        path = os.path.dirname(path)


@dataclass(frozen=True)
class SshMesh:
    """How this node reaches the others by ssh.

    Attributes
    ----------
    rsh : str
        Path of a program that is called as ``ssh`` is: ``rsh node3 hostname``. It is itself called "ssh", so that its
        folder, put first on PATH, makes it everybody's ssh.
    config : str
        Path of the ssh_config, for what wants ``ssh -F config``.
    hosts : tuple of str
        What each node is called in it, by index: "node0". Addresses and host names work too where they are unique.

    Example
    -------
    >>> mesh = SshMesh.form(current.gang, os.environ, os.getcwd())
    >>> current.gang.run([mesh.rsh, mesh.hosts[1], "hostname"])
    """

    rsh: str
    config: str
    hosts: tuple[str, ...]

    @classmethod
    def form(cls, gang: Gang, env: Mapping[str, str], cwd: str) -> SshMesh:
        """Make keys, start this node's sshd, learn of the others', and log in at the next node to see that it works.

        Every node must call it. What it started runs, and ends, with the gang.

        Parameters
        ----------
        gang : Gang
        env : mapping of str to str
            The environment of the commands that come to this node.
        cwd : str
            Their working folder.

        Raises
        ------
        SshUnusable
            On every node, when one of them cannot take part.
        """
        folder = tempfile.mkdtemp(prefix="ssh-", dir=gang.folder)
        files = {name: os.path.join(folder, name) for name in ("ssh", "config", "user_key", "known_hosts")}
        mine: dict[str, Any]
        try:
            mine = asdict(_serve(gang, folder, env, cwd))
        except (SshUnusable, OSError) as error:
            mine = {"problem": str(error)}
        told = gang.all_gather(mine)
        _agree([entry.get("problem", "") for entry in told])
        peers = [Peer(**entry) for entry in told]
        nodes = [(node.address, node.hostname) for node in gang.nodes]
        write_private(files["config"], client_config(nodes, peers, files["user_key"], files["known_hosts"]))
        write_private(files["known_hosts"], known_hosts(peers))
        # From now on the others may log in.
        write_private(os.path.join(folder, "authorized_keys"), authorized_keys(peers))
        write_private(files["ssh"], client_script(_tool("ssh"), files["config"]), mode=0o700)
        gang.barrier()
        _agree(gang.all_gather(_reach(files["ssh"], gang, peers)))
        return cls(files["ssh"], files["config"], tuple(host_name(node) for node in range(gang.num_nodes)))


def _agree(problems: Sequence[str]) -> None:
    """Let all nodes go on, or none."""
    told = [(node, problem) for node, problem in enumerate(problems) if problem]
    if told:
        node, problem = told[0]
        others = f"Of {len(told)} nodes that cannot take part this is the first: " if len(told) > 1 else ""
        raise SshUnusable(
            'The nodes cannot reach each other by ssh; with transport="channel" they do without. '
            f"{others}Node {node}: {problem}"
        )


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _KEPT if name in os.environ}


def _new_key(path: str, comment: str) -> str:
    """Make a key pair; its public half."""
    made = subprocess.run(
        [_tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path],
        env=_environment(),
        stdin=_NOTHING,
        capture_output=True,
        check=False,
    )
    if made.returncode:
        said = (made.stderr + made.stdout).decode(errors="replace").strip()
        raise SshUnusable(f"ssh-keygen made no Ed25519 key: {said or f'exit code {made.returncode}'}")
    with open(f"{path}.pub", encoding="ascii") as file:
        return file.read().strip()


def _serve(gang: Gang, folder: str, env: Mapping[str, str], cwd: str) -> Peer:
    """Start this node's sshd, which lets nobody in as long as there is no list of keys."""
    for name in TOOLS:
        _tool(name)
    account, strict = _account(), _strict_modes(folder)
    if not can_be_spelled(folder):
        raise SshUnusable(f"OpenSSH cannot be told of a folder with such a name: {folder!r}. Set TMPDIR to another.")
    files = {name: os.path.join(folder, name) for name in ("session", "sshd_config", "authorized_keys", "host_key")}
    write_private(files["session"], session_script(env, cwd), mode=0o700)
    host_key = _new_key(files["host_key"], f"host of node {gang.node_index}")
    user_key = _new_key(os.path.join(folder, "user_key"), f"user of node {gang.node_index}")
    # -D: stays our child; -e: speaks to us and not to the machine's log. sshd wants to be called by its whole path.
    argv = (_tool("sshd"), "-D", "-e", "-f", files["sshd_config"])
    address = gang.node.address
    for _ in range(PORTS_TRIED):
        port = gang.free_port()
        config = server_config(
            address,
            port,
            account.pw_name,
            os.geteuid() == 0,
            files["host_key"],
            files["authorized_keys"],
            files["session"],
            strict,
        )
        write_private(files["sshd_config"], config)
        try:
            process = Process(argv, _environment(), cwd="/", title="sshd")
            gang.start(process, ready=f"Server listening on .* port {port}", timeout=READY_S)
        except ProcessFailed as failed:
            if not _mended(failed.tail):
                raise SshUnusable(f"{failed}") from None
        except GangException as late:
            raise SshUnusable(str(late)) from None
        else:
            return Peer(account.pw_name, user_key, host_key, port)
    raise SshUnusable(f"no port on {address} was free for sshd: other programs took {PORTS_TRIED} of them.")


def _mended(output: str) -> bool:
    """Whether an sshd that has ended may be started once more."""
    if "Address already in use" in output:
        return True
    missing = re.search(r"Missing privilege separation directory: ((?:/var)?/run/\S+)", output)
    if missing is None:
        return False
    with contextlib.suppress(FileExistsError):  # another node of a local gang has met with the same
        os.mkdir(missing[1])
        os.chmod(missing[1], 0o755)
    return True


def _reach(rsh: str, gang: Gang, peers: Sequence[Peer]) -> str:
    """What keeps this node from logging in at the next one; "" for nothing. Each node is so reached by another."""
    there = (gang.node_index + 1) % gang.num_nodes
    try:
        done = subprocess.run(
            [rsh, host_name(there), "exit 0"],
            stdin=_NOTHING,
            capture_output=True,
            timeout=REACH_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        said = f"nothing happened for {REACH_S:g} s"
    except OSError as error:
        return f"{rsh} cannot be executed ({error.strerror}). Set TMPDIR to a folder in which programs can be run."
    else:
        if not done.returncode:
            return ""
        output = last_lines((done.stderr + done.stdout).decode(errors="replace")).strip()
        said = output or f"exit code {done.returncode}"
    where = f"node {there} ({gang.nodes[there].address} port {peers[there].port})"
    return (
        f"it cannot log in at {where}: {said.rstrip('.')}. Does a firewall or network policy allow connections to all "
        "ports between the nodes?"
    )

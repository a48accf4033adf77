"""Commands on other nodes over SSH: one private sshd per node, with keys made for this attempt alone.

The sshd runs as the user of the step on the gang's own address, and lets in only the nodes of this gang. All its files
lie in a private folder below the gang's, which is removed when the gang ends, as the sshd and its sessions are ended.
Private keys never leave their node. The only thing outside is /run/sshd, an empty folder without which root's sshd does
not start. It is made where it is missing, and stays: another gang, or the machine's own sshd, may use it by then.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..exceptions import GangException, ProcessFailed
from ..gang.gang import Gang
from ..gang.launch_plan import Process
from ..guard.processes.process_table import GANG_MARKER
from ..guard.text import last_lines
from .hostfile import write_private
from .ssh_checks import TOOLS, SshUnusable, account, strict_modes, tool
from .ssh_config import (
    SshHost,
    authorized_keys,
    can_be_spelled,
    client_config,
    client_script,
    host_name,
    known_hosts,
    server_config,
    session_script,
)

REACH_S = 20.0
"""Limit for the first login at another node, in seconds; ssh itself waits 10 s for the connection."""

READY_S = 20.0
"""Limit for sshd to listen, in seconds; it takes some ten milliseconds."""

PORTS_TRIED = 10

_NOTHING = subprocess.DEVNULL

# The variables that the programs of OpenSSH get: no secrets, and no library path of a Python environment, with whose
# OpenSSL the system's programs may not run.
_KEPT = ("PATH", "LD_PRELOAD", "NSS_WRAPPER_PASSWD", "NSS_WRAPPER_GROUP", GANG_MARKER)


@dataclass(frozen=True)
class SshShell:
    """This node's access to the other nodes by SSH.

    Attributes
    ----------
    rsh : str
        Path of a program that takes the arguments of ``ssh``: ``rsh node3 hostname``. Its name is "ssh", so that a
        program that has its folder first on PATH uses it.
    config : str
        Path of the ssh_config, for ``ssh -F config``.
    hosts : tuple of str
        The name of each node in ``config``, by index: "node0". Unique addresses and host names work too.

    Example
    -------
    >>> shell = SshShell.form(current.gang, os.environ, os.getcwd())
    >>> current.gang.run([shell.rsh, shell.hosts[1], "hostname"])
    """

    rsh: str
    config: str
    hosts: tuple[str, ...]

    @classmethod
    def form(cls, gang: Gang, env: Mapping[str, str], cwd: str) -> SshShell:
        """Make keys, start this node's sshd, exchange keys and ports, and log in at the next node as a test.

        Every node must call it. The sshd ends with the gang.

        Parameters
        ----------
        gang : Gang
        env : mapping of str to str
            The environment of the commands that other nodes run on this node.
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
        entries = gang.all_gather(mine)
        _agree([entry.get("problem", "") for entry in entries])
        hosts = [SshHost(**entry) for entry in entries]
        nodes = [(node.address, node.hostname) for node in gang.nodes]
        write_private(files["config"], client_config(nodes, hosts, files["user_key"], files["known_hosts"]))
        write_private(files["known_hosts"], known_hosts(hosts))
        # From here on the other nodes can log in.
        write_private(os.path.join(folder, "authorized_keys"), authorized_keys(hosts))
        write_private(files["ssh"], client_script(tool("ssh"), files["config"]), mode=0o700)
        gang.barrier()
        _agree(gang.all_gather(_login_problem(files["ssh"], gang, hosts)))
        return cls(files["ssh"], files["config"], tuple(host_name(node) for node in range(gang.num_nodes)))


def _agree(problems: Sequence[str]) -> None:
    """Raise :class:`SshUnusable`, the same on all nodes, where a node has reported a problem.

    Parameters
    ----------
    problems : sequence of str
        Of each node, by index; "" where there is none.
    """
    found = [(node, problem) for node, problem in enumerate(problems) if problem]
    if found:
        node, problem = found[0]
        others = f"Of {len(found)} nodes that cannot take part this is the first: " if len(found) > 1 else ""
        raise SshUnusable(
            'The nodes cannot reach each other by ssh; with transport="channel" they do without. '
            f"{others}Node {node}: {problem}"
        )


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _KEPT if name in os.environ}


def _new_key(path: str, comment: str) -> str:
    """Make a key pair at ``path`` and return its public half; raises :class:`SshUnusable` where ssh-keygen fails."""
    made = subprocess.run(
        [tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path],
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


def _serve(gang: Gang, folder: str, env: Mapping[str, str], cwd: str) -> SshHost:
    """Start this node's sshd and return what the others need to log in. Nobody can before there is a list of keys."""
    for name in TOOLS:
        tool(name)
    user, strict = account().pw_name, strict_modes(folder)
    if not can_be_spelled(folder):
        raise SshUnusable(f"OpenSSH cannot be told of a folder with such a name: {folder!r}. Set TMPDIR to another.")
    files = {name: os.path.join(folder, name) for name in ("session", "sshd_config", "authorized_keys", "host_key")}
    write_private(files["session"], session_script(env, cwd), mode=0o700)
    host_key = _new_key(files["host_key"], f"host of node {gang.node_index}")
    user_key = _new_key(os.path.join(folder, "user_key"), f"user of node {gang.node_index}")
    # -D: sshd stays a child of the guard; -e: it writes to stderr, not to the machine's log. It needs its whole path.
    argv = (tool("sshd"), "-D", "-e", "-f", files["sshd_config"])
    address = gang.node.address
    for _ in range(PORTS_TRIED):
        port = gang.free_port()
        config = server_config(
            address,
            port,
            user,
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
            return SshHost(user, user_key, host_key, port)
    raise SshUnusable(f"no port on {address} was free for sshd: other programs took {PORTS_TRIED} of them.")


def _mended(output: str) -> bool:
    """Whether an sshd that ended with ``output`` may be started again; makes the folder that it missed."""
    if "Address already in use" in output:
        return True
    missing = re.search(r"Missing privilege separation directory: ((?:/var)?/run/\S+)", output)
    if missing is None:
        return False
    with contextlib.suppress(FileExistsError):  # another node of a local gang has made it
        os.mkdir(missing[1])
        os.chmod(missing[1], 0o755)
    return True


def _login_problem(rsh: str, gang: Gang, hosts: Sequence[SshHost]) -> str:
    """Log in at the next node and return what prevents it; "" where it works. Each node is so tested by another."""
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
    where = f"node {there} ({gang.nodes[there].address} port {hosts[there].port})"
    return (
        f"it cannot log in at {where}: {said.rstrip('.')}. Does a firewall or network policy allow connections to all "
        "ports between the nodes?"
    )

"""Configuration of OpenSSH as text: for the private server, for its client, and for its sessions.

Only options that OpenSSH has had since 7.8 (2018) are used, and nothing is read from /etc/ssh or ~/.ssh.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..guard.processes.process_table import LAUNCH_MARKER
from ..guard.processes.process_table import SESSION as SESSION_MARK

ALIVE_S, ALIVE_COUNT = 3, 2
"""An answer is asked for this often, and so many may be missing: 9 s until a cut connection ends, on both sides."""

CONNECTIONS = 1000
"""Connections that a node serves at once, those that have not logged in yet included: a gang's size, and more."""

# SHLVL: a bash that finds itself started by sshd, and at the first level, would read ~/.bashrc before the command. That
# takes as long as whatever is in there, and what it says would be taken for the command's output.
SERVER = """\
ListenAddress {listen}
Port {port}
AddressFamily any
HostKey {host_key}
PidFile none
AllowUsers {user}
PermitRootLogin {root}
AuthenticationMethods publickey
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
HostbasedAuthentication no
UsePAM no
AuthorizedKeysFile {authorized_keys}
AuthorizedKeysCommand none
AuthorizedPrincipalsCommand none
TrustedUserCAKeys none
StrictModes {strict}
PermitUserEnvironment no
PermitUserRC no
SetEnv SHLVL=2
PermitTTY no
DisableForwarding yes
AllowTcpForwarding no
AllowStreamLocalForwarding no
AllowAgentForwarding no
X11Forwarding no
PermitTunnel no
GatewayPorts no
ForceCommand {command}
MaxAuthTries 3
LoginGraceTime 30
MaxStartups {connections}
MaxSessions {connections}
ClientAliveInterval {alive}
ClientAliveCountMax {alive_count}
UseDNS no
PrintMotd no
PrintLastLog no
LogLevel INFO
"""

EVERY_HOST = """\
Host *
    IdentityFile {user_key}
    IdentitiesOnly yes
    IdentityAgent none
    AddKeysToAgent no
    BatchMode yes
    PreferredAuthentications publickey
    StrictHostKeyChecking yes
    UserKnownHostsFile {known_hosts}
    GlobalKnownHostsFile none
    UpdateHostKeys no
    CheckHostIP no
    VerifyHostKeyDNS no
    CanonicalizeHostname no
    ProxyCommand none
    ControlMaster no
    ControlPath none
    ClearAllForwardings yes
    ForwardAgent no
    ForwardX11 no
    PermitLocalCommand no
    RequestTTY no
    EscapeChar none
    ConnectTimeout 10
    ServerAliveInterval {alive}
    ServerAliveCountMax {alive_count}
    LogLevel ERROR
"""

SESSION = """\
#!/bin/sh
# Runs a command that came by ssh, in the environment and the working folder of this node's step.
if [ -z "${{SSH_ORIGINAL_COMMAND+x}}" ]; then
    echo "[gang] This sshd runs commands, and no shell." >&2
    exit 1
fi
set -- "$SSH_ORIGINAL_COMMAND"
unset {names}
{exports}cd -- {cwd} || exit 126
exec /bin/sh -c "$1"
"""

CLIENT = """\
#!/bin/sh
unset LD_LIBRARY_PATH
exec {ssh} -F {config} "$@"
"""
_SET_BY_SSHD = (
    "HOME", "LOGNAME", "MAIL", "PATH", "SHELL", "SHLVL", "SSH_CLIENT", "SSH_CONNECTION", "SSH_ORIGINAL_COMMAND",
    "SSH_USER_AUTH", "TZ", "USER",
)  # fmt: skip
# Some shell does not let them be set, or takes a value of another process amiss.
_THE_SHELLS_OWN = frozenset(
    {"BASHOPTS", "BASH_VERSINFO", "EUID", "IFS", "LINENO", "OPTIND", "PPID", "SHELLOPTS", "UID"}
)


@dataclass(frozen=True)
class SshHost:
    """What one node gives to the others about its sshd: where, and the public keys of its user and of its host."""

    user: str
    user_key: str
    host_key: str
    port: int


def can_be_spelled(path: str) -> bool:
    """Whether OpenSSH's files can hold a path: there is no way around its variables, nor around the end of a line."""
    return not re.search(r"[\n\r]|\$\{", path)


def _word(text: str, expanded: bool = False) -> str:
    """One argument of a line; ``expanded`` where OpenSSH replaces percent signs in it."""
    text = text.replace("%", "%%") if expanded else text
    if re.fullmatch(r"[\w./:%@+,=-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def server_config(
    address: str, port: int, user: str, is_root: bool, host_key: str, authorized_keys: str, session: str, strict: bool
) -> str:
    """The sshd_config of one node; paths are absolute, ``session`` is the script that runs each command."""
    return SERVER.format(
        listen=f"[{address}]:{port}" if ":" in address else f"{address}:{port}",
        port=port,
        host_key=_word(host_key),
        # A pattern, in which "@" would begin a host: what could be special matches itself among others.
        user=re.sub(r"[^\w.-]", "?", user),
        root="prohibit-password" if is_root else "no",
        authorized_keys=_word(authorized_keys, expanded=True),
        strict="yes" if strict else "no",
        # For the user's login shell, to the end of the line. Works where the folder's programs may not be executed.
        command=f"exec /bin/sh {shlex.quote(session)}",
        connections=CONNECTIONS,
        alive=ALIVE_S,
        alive_count=ALIVE_COUNT,
    )


def client_config(nodes: Sequence[tuple[str, str]], hosts: Sequence[SshHost], user_key: str, known_hosts: str) -> str:
    """The ssh_config of one node. ``nodes`` has address and host name of each.

    A node is known by "node3", its address, and its host name. Where several have the same, as local nodes do, the name
    is the first one's.
    """
    taken: set[str] = set()
    blocks = []
    for index, ((address, hostname), host) in enumerate(zip(nodes, hosts, strict=True)):
        names = [name for name in dict.fromkeys((host_name(index), address, hostname)) if name not in taken]
        taken.update(names)
        patterns = " ".join(name for name in names if re.fullmatch(r"[\w.:%-]+", name))
        blocks.append(
            f"Host {patterns}\n    HostName {_word(address, expanded=True)}\n    Port {host.port}\n"
            f"    HostKeyAlias {host_name(index)}\n    User {_word(host.user)}\n"
        )
    every = EVERY_HOST.format(
        user_key=_word(user_key, expanded=True),
        known_hosts=_word(known_hosts, expanded=True),
        alive=ALIVE_S,
        alive_count=ALIVE_COUNT,
    )
    return "".join([*blocks, every])


def client_script(ssh: str, config: str) -> str:
    """What is called in ssh's place: ssh with the gang's configuration, and without the libraries of others."""
    return CLIENT.format(ssh=shlex.quote(ssh), config=shlex.quote(config))


def host_name(node: int) -> str:
    """What a node is called in the gang's ssh_config, whatever its address."""
    return f"node{node}"


def known_hosts(hosts: Sequence[SshHost]) -> str:
    """The pinned host keys."""
    return "".join(f"{host_name(index)} {host.host_key}\n" for index, host in enumerate(hosts))


def authorized_keys(hosts: Sequence[SshHost]) -> str:
    """Who may run commands on a node: every node of the gang, and nobody else."""
    return "".join(f"restrict {host.user_key}\n" for host in hosts)


def session_script(env: Mapping[str, str], cwd: str) -> str:
    """The script that runs a command in the environment ``env`` and the folder ``cwd``.

    A variable whose name is no name to a shell is left out.
    """
    exported = {
        name: value
        for name, value in {**env, LAUNCH_MARKER: SESSION_MARK}.items()
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and name not in _THE_SHELLS_OWN
    }
    return SESSION.format(
        names=" ".join(name for name in _SET_BY_SSHD if name not in exported) or "_",
        exports="".join(f"export {name}={shlex.quote(value)}\n" for name, value in exported.items()),
        cwd=shlex.quote(cwd),
    )

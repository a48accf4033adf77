"""Whether SSH between the nodes can work on this node: its programs, its user, and who may write to its folders."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess

from ..exceptions import ToolMissing

TOOLS = ("ssh", "ssh-keygen", "sshd")

_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin")

_SHELL_S = 20.0
"""For the user's login shell to run a command; it takes some milliseconds."""


class SshUnusable(ToolMissing):
    """Some node cannot take part in SSH; the message says which, why, and what to do. Raised on all nodes."""


def missing_tools() -> list[str]:
    """Which of "ssh", "ssh-keygen" and "sshd" this node lacks."""
    return [name for name in TOOLS if _find(name) is None]


def _find(name: str) -> str | None:
    """The absolute path of a program or None; sshd lies in a folder that an ordinary user's PATH does not have."""
    folders = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.isabs(folder)]
    return shutil.which(name, path=os.pathsep.join([*folders, *_SYSTEM_FOLDERS]))


def tool(name: str) -> str:
    """The absolute path of a program of OpenSSH; raises :class:`SshUnusable` where it is not installed."""
    path = _find(name)
    if path is None:
        raise SshUnusable(
            f"{name} is not installed. Add OpenSSH's client and server (openssh-client, openssh-server) to the image."
        )
    return path


def account() -> pwd.struct_passwd:
    """This user's entry in the password database; raises :class:`SshUnusable` where sshd would refuse this user."""
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
        tried = subprocess.run(
            [shell, "-c", "exit 7"], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_SHELL_S
        )
        works = tried.returncode == 7
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


def strict_modes(folder: str) -> bool:
    """Check that nobody else can replace the files in ``folder``; return whether sshd may check the same.

    sshd accepts no folder below one that others may write to, and so none below /tmp, although nobody can rename other
    users' files there (the sticky bit). So the check is made here with regard to the sticky bit, and sshd's own is
    switched off only where that bit is why it would refuse.

    Raises
    ------
    SshUnusable
        Others can replace the files.
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

"""N real hosts on one machine: each its own network, hostname, processes, shared memory, mounts and /run.

They hang on a bridge in a network namespace of its own, so nothing is added to the machine's network; a link can be
cut without a sound, and a host can be killed. Linux and root only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .processes import Process, descendants, read_process, send_signal, wait_gone
from .requirements import require_root, require_tool

_NURSERY = Path(__file__).with_name("machine") / "nursery.py"
_LOSSY = Path(__file__).with_name("machine") / "lossy.py"
_NETWORK = "10.77.0"
_FIRST = 10

OWN_TMP = """
# A bind mount of each kept folder is held open below /run while the new /tmp covers the old one.
number=0
for kept in "$@"; do
    number=$((number + 1)); mkdir -p "/run/kept/$number"; mount --bind "$kept" "/run/kept/$number"
done
mount -t tmpfs -o mode=1777 tmpfs /tmp
number=0
for kept in "$@"; do
    number=$((number + 1)); mkdir -p "$kept"; mount --move "/run/kept/$number" "$kept"
done
"""
"""Shell commands that cover /tmp with an empty one, in which only the folders "$@" of the old one are still seen."""

# Runs as the first process of the host; $1 its name, $2 its folder of small files, then the folders to keep of /tmp.
# nsswitch: with "dns" in it each unknown name would wait for a server that the host cannot reach.
_SETUP = (
    """
set -e
name=$1; files=$2; private=$3; shift 3
hostname "$name"
mount --make-rprivate /
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -p /run/lock
mount --bind "$files/hosts" /etc/hosts
mount --bind "$files/$name" /etc/hostname
mount --bind "$files/nsswitch.conf" /etc/nsswitch.conf
mount --bind "$files/resolv.conf" /etc/resolv.conf
for accounts in passwd group; do
    if [ -e "$files/$accounts" ]; then mount --bind "$files/$accounts" "/etc/$accounts"; fi
done
if [ -e "$files/opened" ]; then . "$files/opened"; fi
if [ "$private" = 1 ]; then
"""
    + OWN_TMP
    + """
fi
mount -t proc proc /proc
ip link set lo up
exec "$PYTHON" -I -S "$NURSERY" 1
"""
)


@dataclass(frozen=True)
class Account:
    """A user of the hosts, and a group of the same name and number. They may use this Python, wherever it lies."""

    name: str
    uid: int
    home: str | Path
    shell: str = "/bin/sh"


class Host:
    """One of them. ``pid`` is its first process as this machine sees it: everything in the host ends with it."""

    def __init__(self, index: int, name: str, address: str, pid: int) -> None:
        self.index, self.name, self.address, self.pid = index, name, address, pid

    def _enter(self, argv: Sequence[str], cwd: str | Path | None, user: str | None) -> list[str]:
        become = [] if user is None else ["setpriv", "--reuid", user, "--regid", user, "--init-groups"]
        # The working folder is one of the host: with a /tmp of its own, this machine's may not exist there.
        inside = ["sh", "-c", 'cd "$0" && exec "$@"', str(cwd if cwd is not None else os.getcwd())]
        spaces = ["-n", "-u", "-i", "-m", "-p"]
        return [require_tool("nsenter"), "-t", str(self.pid), *spaces, *inside, *become, *argv]

    def popen(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        user: str | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start a command in the host. Its process here is ``nsenter``'s; :meth:`processes` finds the command's own."""
        return subprocess.Popen(self._enter(argv, cwd, user), env=env, text=True, **options)

    def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        user: str | None = None,
        timeout: float = 60.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the host to its end and return what it wrote; AssertionError where it fails."""
        done = subprocess.run(
            self._enter(argv, cwd, user),
            env=env,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)} on {self.name} exited with {done.returncode}: {done.stderr}")
        return done

    def processes(self) -> list[Process]:
        """What runs in the host, its first process left out, with the pids that this machine knows them by."""
        space = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{name}/ns/pid") == space and int(name) != self.pid:
                    process = read_process(int(name))
                    if process and not process.zombie:
                        found.append(process)
        return found


class Hosts:
    """``with Hosts(3) as hosts``: hosts[0] to hosts[2], named gang0 to gang2, gone with the block.

    Parameters
    ----------
    count : int
        How many.
    private_tmp : bool
        Whether each has a /tmp of its own, as machines have; else all share this machine's.
    keep : sequence of path
        Folders below /tmp that stay shared where ``private_tmp``.
    rate : int, optional
        Mbit/s of each host's link, both ways.
    accounts : sequence of Account
        Users that the hosts know besides this machine's, or instead of those of the same name.
    """

    def __init__(
        self,
        count: int,
        private_tmp: bool = False,
        keep: Sequence[str | Path] = (),
        rate: int | None = None,
        accounts: Sequence[Account] = (),
    ) -> None:
        self._count, self._private_tmp, self._keep, self._rate = count, private_tmp, keep, rate
        self._accounts = accounts
        self._hosts: list[Host] = []
        self._switch = 0
        self._close = contextlib.ExitStack()

    def __getitem__(self, index: int) -> Host:
        return self._hosts[index]

    def __len__(self) -> int:
        return len(self._hosts)

    def __enter__(self) -> Hosts:
        require_root()
        for tool, package in (("unshare", "util-linux"), ("nsenter", "util-linux"), ("ip", "iproute2")):
            require_tool(tool, package)
        with contextlib.ExitStack() as undo:
            folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="gang-hosts-")))
            self._write_files(folder)
            self._switch = self._first_process(undo, ["-n"], f'exec "{sys.executable}" -I -S "{_NURSERY}" 1', ())
            self._in(self._switch, "ip link set lo up; ip link add br0 type bridge; ip link set br0 up")
            for index in range(self._count):
                self._hosts.append(self._add(undo, index, folder))
            self._close = undo.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hosts.clear()
        self._close.close()

    def _name(self, index: int) -> str:
        return f"gang{index}"

    def _write_files(self, folder: Path) -> None:
        lines = ["127.0.0.1 localhost"]
        for index in range(self._count):
            lines.append(f"{_NETWORK}.{_FIRST + index} {self._name(index)}")
            (folder / self._name(index)).write_text(self._name(index) + "\n")
        (folder / "hosts").write_text("\n".join(lines) + "\n")
        (folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        (folder / "resolv.conf").write_text("")
        if self._accounts:
            new = {account.name for account in self._accounts}
            for name, added in (
                ("passwd", [f"{a.name}:x:{a.uid}:{a.uid}::{a.home}:{a.shell}" for a in self._accounts]),
                ("group", [f"{a.name}:x:{a.uid}:" for a in self._accounts]),
            ):
                old = [line for line in Path("/etc", name).read_text().splitlines() if line.split(":")[0] not in new]
                (folder / name).write_text("\n".join([*added, *old]) + "\n")
            (folder / "opened").write_text(_opened(sys.base_prefix, sys.prefix, _NURSERY.parent))
        folder.chmod(0o755)

    def _add(self, undo: contextlib.ExitStack, index: int, folder: Path) -> Host:
        name, address = self._name(index), f"{_NETWORK}.{_FIRST + index}"
        # What the host's own first process runs may lie below /tmp as well.
        keep = [*self._keep, *(path for path in (sys.prefix, sys.base_prefix, _NURSERY.parent) if _below_tmp(path))]
        arguments = (name, str(folder), "1" if self._private_tmp else "0", *(str(path) for path in keep))
        pid = self._first_process(undo, ["-n", "-u", "-i", "-m", "-p", "-f", "--kill-child"], _SETUP, arguments)
        self._in(self._switch, f"ip link add v{index} type veth peer name eth0 netns {pid}")
        self._in(self._switch, f"ip link set v{index} master br0 up")
        self._in(pid, f"ip addr add {address}/24 dev eth0; ip link set eth0 up")
        if self._rate:
            require_tool("tc", "iproute2")
            shape = f"root tbf rate {self._rate}mbit burst 512kb latency 50ms"
            self._in(pid, f"tc qdisc add dev eth0 {shape}")
            self._in(self._switch, f"tc qdisc add dev v{index} {shape}")
        return Host(index, name, address, pid)

    def _first_process(
        self, undo: contextlib.ExitStack, spaces: list[str], script: str, arguments: tuple[str, ...]
    ) -> int:
        """Start a first process in new namespaces; its pid, once it has set itself up. It ends with its stdin."""
        process = subprocess.Popen(
            ["unshare", *spaces, "sh", "-c", script, "sh", *arguments],
            env=dict(os.environ, PYTHON=sys.executable, NURSERY=str(_NURSERY), PATH=_path()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        undo.callback(_end, process)
        assert process.stdout is not None
        ready = process.stdout.readline()
        if not ready:
            raise AssertionError(f"unshare {' '.join(spaces)} could not be set up (its message is on stderr)")
        json.loads(ready)
        children = descendants(process.pid)
        return children[0].pid if "-p" in spaces else process.pid

    def _in(self, pid: int, script: str) -> None:
        argv = ["nsenter", "-t", str(pid), "-n", "sh", "-ec", script]
        subprocess.run(argv, env=dict(os.environ, PATH=_path()), check=True, timeout=20)

    def cut(self, index: int) -> None:
        """Take a host off the network without a sound: no packet passes, and neither side is told."""
        self._in(self._switch, f"ip link set v{index} down")

    def heal(self, index: int) -> None:
        """Undo :meth:`cut`."""
        self._in(self._switch, f"ip link set v{index} up")

    def lose(self, share: float) -> None:
        """From now on lose this share of all packets on the way from host to host, at random; for good.

        (Kernels made small have no netem.) Whoever forwards ends with the hosts.
        """
        for index in range(len(self._hosts)):
            self._in(self._switch, f"ip link set v{index} nomaster")
        argv = ["nsenter", "-t", str(self._switch), "-n", sys.executable, "-I", "-S", str(_LOSSY), str(share)]
        process = subprocess.Popen(
            [*argv, *(f"v{index}" for index in range(len(self._hosts)))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._close.callback(_end, process)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"

    def stop(self, index: int) -> None:
        """Freeze all that runs on a host, while its kernel goes on, as a paused container does."""
        self._signal(index, signal.SIGSTOP)

    def go_on(self, index: int) -> None:
        """Undo :meth:`stop`."""
        self._signal(index, signal.SIGCONT)
        # nsenter stops itself where its child is stopped.
        enters = ("-t", str(self._hosts[index].pid))
        for process in descendants(os.getpid()):
            if process.command[1:3] == enters:
                send_signal(process, signal.SIGCONT)

    def _signal(self, index: int, number: int) -> None:
        for process in self._hosts[index].processes():
            send_signal(process, number)

    def kill(self, index: int, timeout: float = 5.0) -> None:
        """End a host as a loss of power does: all its processes at once."""
        first = read_process(self._hosts[index].pid)
        if first is None or not send_signal(first, 9) or wait_gone([first.pid], timeout):
            raise AssertionError(f"{self._hosts[index].name} could not be killed")


def _opened(*paths: str | Path) -> str:
    """Shell commands that let every user reach ``paths``, as Python's own below a /root that is closed to them.

    Each closed folder is covered by an open one, in which there is nothing but what leads to ``paths``.
    """
    kept: dict[Path, list[Path]] = {}
    for path in map(Path.resolve, map(Path, paths)):
        for folder in reversed(path.parents):
            if not folder.stat().st_mode & 0o001:
                kept.setdefault(folder, []).append(path)
                break
    lines = []
    for folder, inside in kept.items():
        places = [(f"/run/opened/{number}", shlex.quote(str(path))) for number, path in enumerate(inside)]
        lines += [f"mkdir -p {held}; mount --bind {path} {held}" for held, path in places]
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(folder))}")
        lines += [f"mkdir -p {path}; mount --move {held} {path}" for held, path in places]
    return "\n".join(lines) + "\n"


def _below_tmp(path: str | Path) -> bool:
    return Path("/tmp") in Path(path).resolve().parents


def _path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a first process by its stdin, or by force, and everything in its namespaces with it."""
    streams: tuple[IO[bytes] | None, ...] = (process.stdin, process.stdout)
    for stream in streams:
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

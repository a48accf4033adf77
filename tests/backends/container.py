"""A container on one of the tests' hosts: an image, and files, names and processes of its own, all gone at its end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from support.hosts import OWN_TMP, Host
from support.leaks import MARK
from support.processes import Process, descendants, send_signal

from .image import Image

KILLED = 137
"""Exit code, as a container runtime tells it, of one whose first process was ended by SIGKILL."""

SHARED_MEMORY = 64
"""MiB that /dev/shm has under container runtimes, unless they are asked for more."""

_START_S = 10.0

# $1 the hostname, $2 a folder with the file of known names, $3 MiB of shared memory, then the folders below /tmp to
# keep; "--"; the command, which becomes the container's first process, in a session of its own as under every container
# runtime.
_SETUP = (
    """
set -e
hostname "$1"; names=$2; shared=$3; shift 3
kept=
while [ "$1" != -- ]; do kept="$kept $1"; shift; done
shift
mount -t tmpfs -o "size=${shared}m" tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -p /run/lock /run/container/home /run/container/work /run/names
mount --bind "$names" /run/names
mount --bind /run/names/hosts /etc/hosts
set_up_tmp() {
"""
    + OWN_TMP
    + """
}
set_up_tmp $kept
cd /run/container/work
exec setsid "$@"
"""
)


class Container:
    """One of them. Its working folder, HOME, /tmp, /run and shared memory are its own and empty at its start.

    Parameters
    ----------
    host : Host
        Where it runs, and whose address it has.
    folder : path
        Where its log and the names that it knows are kept; seen by this process.
    image : Image
        What it has besides the system's programs.
    argv, env : sequence, mapping
        The first process, which gets no other variables than these, the image's and HOME.
    hostname : str
        What it calls itself.
    shared_memory : int
        MiB in its /dev/shm.
    """

    def __init__(
        self,
        host: Host,
        folder: Path,
        image: Image,
        argv: Sequence[str],
        env: Mapping[str, str],
        hostname: str,
        shared_memory: int = SHARED_MEMORY,
    ) -> None:
        self.host, self.hostname, self.log = host, hostname, folder / "log"
        names = folder / "names"
        names.mkdir(parents=True)
        self._hosts_file, self._known = names / "hosts", ""
        self._hosts_file.touch()
        self._killed = False
        self.know({})
        kept = sorted({str(path) for path in image.needs if Path("/tmp") in path.parents})
        spaces = ["-u", "-i", "-m", "-p", "-f", "--kill-child", "--mount-proc"]
        own = {"HOME": "/run/container/home", MARK: os.environ.get(MARK, "")}
        arguments = [hostname, str(names), str(shared_memory), *kept, "--", *argv]
        with self.log.open("wb") as stream:
            self._process = host.popen(
                ["unshare", *spaces, "sh", "-c", _SETUP, "sh", *arguments],
                env={**image.environment, **own, **env},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

    def know(self, names: Mapping[str, str]) -> None:
        """From now on, these names have these addresses, as a name service would say; its own is always known."""
        lines = ["127.0.0.1 localhost", f"{self.host.address} {self.hostname} {self.hostname.split('.')[0]}"]
        lines += [f"{address} {name}" for name, address in names.items() if name != self.hostname]
        text = "\n".join(lines) + "\n"
        if text != self._known:
            # In place, as a bind mount follows the file and not its name; and never empty for who reads it meanwhile.
            with self._hosts_file.open("r+") as file:
                file.write(text)
                file.truncate()
            self._known = text

    @property
    def output(self) -> str:
        """What its processes have written to the container's own streams."""
        return self.log.read_text(errors="replace")

    @property
    def first(self) -> Process:
        """Its first process, by this machine's pid; the command itself or what still sets the container up."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            for process in descendants(self._process.pid):
                with contextlib.suppress(OSError, StopIteration):
                    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                    if next(line for line in lines if line.startswith("NSpid:")).split()[-1] == "1":
                        return process
            if self._process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"container {self.hostname} has no first process: {self.output}")

    def processes(self, matching: Callable[[Process], bool] = lambda process: True) -> list[Process]:
        """What runs below the first process, the nearest first."""
        return [process for process in descendants(self.first.pid) if matching(process)]

    def kill(self) -> None:
        """SIGKILL to the first process, and so to all: what the kernel's and kubelet's last word is. No error after
        its end.
        """
        if self._process.poll() is None:
            with contextlib.suppress(AssertionError):
                self._killed = send_signal(self.first, 9) or self._killed

    def run(self, argv: Sequence[str], timeout: float = 20.0) -> int:
        """Run a command inside, in a session of its own, as ``kubectl exec`` does; its exit code."""
        # What waits for it stays outside of the container's processes, all of which killall5 stops before it ends them.
        inside = ["nsenter", "-t", str(self.first.pid), "-n", "-u", "-i", "-m", "-p", "--no-fork"]
        inside += ["setsid", "--fork", "--wait", *argv]
        return subprocess.run(inside, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout).returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code as container runtimes tell it: 128 and the signal's number where one ended it."""
        code = self._process.wait(timeout)
        # unshare of util-linux 2.38 ends with 1 where the first process was killed.
        return KILLED if self._killed else code if code >= 0 else 128 - code

    def running(self) -> bool:
        """Whether its first process has not ended yet."""
        return self._process.poll() is None

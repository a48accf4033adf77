"""A file to many hosts by the gang's chain, against the same file to one host, and scp to one host after the other.

    sudo python benchmarks/broadcast.py [--hosts 8] [--mib 256] [--rate 800] [--runs 5]

Every host is a set of namespaces on this machine, its link limited to that many Mbit/s each way (Linux, root, iproute2,
OpenSSH). The sender and the receivers are the gang's own code, each in a process of its own, encrypted and verified as
they always are. The limit is a ratio of 1.4; the exit code says whether it was kept. Nothing is left on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parent.parent
LIMIT = 1.4
TIMEOUT_S = 300
NAME = "data.bin"
SHARED_MEMORY = "/dev/shm"
"""Where the file goes: a host has its own, and eight hosts would share one disk."""


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def receive(address: str, folder: str, size: str) -> None:
    """A node: serve until standard input ends, then say how much processor time that took."""
    sys.path.insert(0, str(ROOT / "core"))
    from guard.remote_command.node_server import NodeServer

    key = bytes.fromhex(sys.stdin.readline())
    launcher: Any = SimpleNamespace(node=1)
    server = NodeServer(launcher, print, folder, address, key, {}, folder)
    warm(folder, int(size))
    before = cpu_seconds()
    print(server.port, flush=True)
    sys.stdin.read()
    server.close()
    print(f"{cpu_seconds() - before:.3f}", flush=True)


def send() -> None:
    """Control: send, and say how many seconds and how much processor time that took."""
    sys.path.insert(0, str(ROOT / "core"))
    from guard.file_broadcast.sender import send

    order = json.loads(sys.stdin.readline())
    begun = time.monotonic()
    send(bytes.fromhex(order["key"]), order["path"], NAME, order["hops"], lambda line: None)
    print(json.dumps([time.monotonic() - begun, cpu_seconds()]), flush=True)


def warm(folder: str, size: int) -> None:
    """Write a file of that size and remove it: a virtual machine gets memory from its own host at the first touch, and
    eight nodes' worth of that is no cost that any one node has.
    """
    path = os.path.join(folder, "warm")
    with open(path, "wb") as file:
        piece = bytes(1 << 20)
        for _ in range(size >> 20):
            file.write(piece)
    os.unlink(path)


def part(*arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", str(HERE), "--part", *arguments]


def output_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("A part of the benchmark has ended early; its message is above.")
    return line.strip()


def seen(host: Any, name: str) -> Path:
    """Where this process sees what a host has in its own /dev/shm."""
    return Path(f"/proc/{host.pid}/root{SHARED_MEMORY}") / name


def chain(hosts: Any, source: Path, count: int) -> tuple[float, float]:
    """Seconds to ``count`` hosts, and the processor seconds of the busiest of all processes."""
    key = os.urandom(32).hex()
    receivers = []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": "/"}
    try:
        for index in range(1, count + 1):
            seen(hosts[index], "").chmod(0o700)  # the server insists on a private folder for its key
            argv = part("receive", hosts[index].address, SHARED_MEMORY, str(source.stat().st_size))
            receivers.append(hosts[index].popen(argv, **pipes))
            receivers[-1].stdin.write(key + "\n")
            receivers[-1].stdin.flush()
        hops = [[i, hosts[i].address, int(output_of(process))] for i, process in enumerate(receivers, 1)]
        order = json.dumps({"key": key, "path": str(source), "hops": hops}) + "\n"
        sender = hosts[0].popen(part("send"), **pipes)
        said, _ = sender.communicate(order, timeout=TIMEOUT_S)
        if sender.returncode:
            raise SystemExit("The sender failed; its message is above.")
        seconds, busiest = json.loads(said)
    finally:
        times = [process.communicate(timeout=TIMEOUT_S)[0] for process in receivers]
    check(source, [seen(hosts[index], NAME) for index in range(1, count + 1)])
    return seconds, max(busiest, *map(float, times))


@contextlib.contextmanager
def ssh_servers(hosts: Any, folder: Path, count: int) -> Iterator[Path]:
    """An sshd on each host, with keys of its own; gives the client's configuration."""
    from support.requirements import require_tool

    sshd, keygen = require_tool("sshd", "openssh-server"), require_tool("ssh-keygen", "openssh-client")
    for name in ("user", "host"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True, timeout=60)
    public = (folder / "host.pub").read_text()
    (folder / "known").write_text("".join(f"{hosts[i].address} {public}" for i in range(1, count + 1)))
    client = folder / "client"
    client.write_text(
        f"IdentityFile {folder}/user\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known\n"
        "GlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\nBatchMode yes\nLogLevel ERROR\n"
    )
    servers = []
    try:
        for index in range(1, count + 1):
            # sshd trusts no keys below a folder where everybody may write, such as /tmp; a host has its own /run.
            script = "chmod 755 /run; mkdir -p -m 755 /run/sshd /run/keys; install -m 600 user.pub host /run/keys"
            hosts[index].run(["sh", "-ec", script], cwd=folder)
            config = folder / f"sshd-{index}"
            config.write_text(
                f"ListenAddress {hosts[index].address}\nHostKey /run/keys/host\nAuthorizedKeysFile /run/keys/user.pub\n"
                "PidFile none\nUsePAM no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
            )
            argv = [sshd, "-D", "-f", str(config)]
            servers.append(hosts[index].popen(argv, cwd="/", stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            wait_for_port(hosts[index])
        yield client
    finally:
        for server in servers:
            server.terminate()  # nsenter alone; the daemon goes with its host
            server.wait()


def wait_for_port(host: Any) -> None:
    probe = "import socket, sys; socket.create_connection((sys.argv[1], 22), 5).close()"
    deadline = time.monotonic() + 20
    while host.run([sys.executable, "-I", "-S", "-c", probe, host.address], check=False, cwd="/").returncode:
        if time.monotonic() > deadline:
            raise SystemExit(f"sshd on {host.name} does not answer.")
        time.sleep(0.1)


def scp(hosts: Any, source: Path, folder: Path, count: int) -> float:
    """Seconds of scp to one host after the other."""
    with ssh_servers(hosts, folder, count) as client:
        begun = time.monotonic()
        for index in range(1, count + 1):
            argv = ["scp", "-q", "-p", "-F", str(client), str(source), f"{hosts[index].address}:{SHARED_MEMORY}/{NAME}"]
            hosts[0].run(argv, cwd="/", timeout=TIMEOUT_S)
        seconds = time.monotonic() - begun
        check(source, [seen(hosts[index], NAME) for index in range(1, count + 1)])
    return seconds


def digest(path: Path) -> str:
    with path.open("rb") as file:
        sha256 = hashlib.sha256()
        while piece := file.read(1 << 20):
            sha256.update(piece)
    return sha256.hexdigest()


def check(source: Path, targets: list[Path]) -> None:
    wanted = digest(source)
    for target in targets:
        if digest(target) != wanted or target.stat().st_mode != source.stat().st_mode:
            raise SystemExit(f"{target} is not what was sent.")
        target.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=8, help="hosts that receive (8)")
    parser.add_argument("--mib", type=int, default=256, help="size of the file (256)")
    parser.add_argument("--rate", type=int, default=800, help="Mbit/s of each host's link (800)")
    parser.add_argument("--runs", type=int, default=5, help="runs of the chain, of which the medians count (5)")
    parser.add_argument("--no-scp", action="store_true", help="leave the comparison with scp out")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, *arguments = options.part
        {"receive": receive, "send": send}[name](*arguments)
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from support.hosts import Hosts

    with (
        tempfile.TemporaryDirectory(prefix="gang-broadcast-") as name,
        Hosts(options.hosts + 1, rate=options.rate) as hosts,
    ):
        folder = Path(name)
        source = folder / "source"
        with source.open("wb") as file:
            for _ in range(options.mib):
                file.write(os.urandom(1 << 20))
        source.chmod(0o750)
        wire = options.mib * 8.388608 / options.rate
        print(f"{options.mib} MiB, {options.rate} Mbit/s per host; the wire alone takes {wire:.2f} s")
        print(f"run     to 1 host    to {options.hosts} hosts    ratio    processor time of the busiest node")
        rows = []
        for run in range(options.runs):
            one, _ = chain(hosts, source, 1)
            many, busiest = chain(hosts, source, options.hosts)
            rows.append((one, many, many / one, busiest))
            print(row(str(run + 1), rows[-1]), flush=True)
        median = tuple(statistics.median(column) for column in zip(*rows, strict=True))
        print(row("median", median), flush=True)
        if not options.no_scp:
            seconds = scp(hosts, source, folder, options.hosts)
            print(f"scp to one host after the other: {seconds:.2f} s, {seconds / median[1]:.1f} times the chain")
    print(f"all checksums and modes are equal; the ratio is {median[2]:.2f}, its limit {LIMIT}")
    sys.exit(median[2] > LIMIT)


def row(name: str, figures: tuple[float, ...]) -> str:
    """A line of the table."""
    one, many, ratio, busiest = figures
    return f"{name:6s} {one:8.2f} s {many:10.2f} s   {ratio:8.2f}    {busiest:8.2f} s"


if __name__ == "__main__":
    main()

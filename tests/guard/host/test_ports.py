"""Port leases, with real processes that compete for them, die with them, and squat on ports."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import metaflow  # noqa: F401 - before any of its extensions
import pytest

from metaflow_extensions.gang.core.guard.host import ports, private_folder
from metaflow_extensions.gang.core.guard.host.ports import (
    PortBusy,
    PortLease,
    base_folder,
    lease_exact,
    lease_port,
    remove_if_empty,
)

DEADLINE = 60
# The guard loads its package as `guard`, with the standard library alone.
ALONE = [sys.executable, "-I", "-S", "-c"]
PRELUDE = f"import sys; sys.path.insert(0, {os.path.dirname(os.path.dirname(os.path.dirname(ports.__file__)))!r})\n"


class AllBut:
    """Every port but these: what to avoid, so that only these are left."""

    def __init__(self, *left: int) -> None:
        self.left = left

    def __contains__(self, port: object) -> bool:
        return port not in self.left


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The leases of a test, in a folder of its own, which is empty at its end."""
    folder = tmp_path / "leases"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def start(script: str, *args: object) -> subprocess.Popen[str]:
    command = [*ALONE, PRELUDE + script, *map(str, args)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def free_ports(count: int) -> list[int]:
    leases = [lease_port() for _ in range(count)]
    for lease in leases:
        lease.release()
    return [lease.port for lease in leases]


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen()
    return listener


def test_a_leased_port_binds_and_is_outside_the_ephemeral_range(own_folder: Path) -> None:
    low, high = ports._ephemeral_range()
    lease = lease_port("127.0.0.1")
    assert not low <= lease.port <= high
    assert str(lease.port) in repr(lease)
    assert [path.name.partition(".")[0] for path in own_folder.glob("*/ports/*.lock")] == [str(lease.port)]
    listen("127.0.0.1", lease.port).close()
    lease.release()
    assert list(own_folder.iterdir()) == []
    lease.release()


def test_the_first_port_is_not_always_the_same() -> None:
    assert len({free_ports(1)[0] for _ in range(8)}) > 1


def test_a_port_is_leased_once_within_a_process() -> None:
    leases = [lease_port() for _ in range(50)]
    assert len({lease.port for lease in leases}) == 50
    for lease in leases:
        lease.release()


def test_avoided_ports_are_avoided() -> None:
    one, other = free_ports(2)
    lease = lease_port(avoid=AllBut(one))
    with pytest.raises(PortBusy, match="No free port is left"):
        lease_port(avoid=AllBut(one))
    second = lease_port(avoid=AllBut(one, other))
    assert (lease.port, second.port) == (one, other)
    lease.release()
    second.release()


CONTEST = """
import os
from guard.host.ports import PortBusy, lease_port
class AllBut:
    def __contains__(self, port): return str(port) not in sys.argv[2:]
sys.stdin.readline()
won = 0
for _ in range(150):
    try:
        lease = lease_port(avoid=AllBut())
    except PortBusy:
        continue
    mark = f"{sys.argv[1]}/{lease.port}"
    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))  # fails where another process holds the port now
    won += 1
    os.unlink(mark)
    lease.release()
print(won)
"""


def test_processes_that_compete_never_share_a_port(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    two = free_ports(2)
    contestants = [start(CONTEST, marks, *two) for _ in range(4)]
    for contestant in contestants:
        assert contestant.stdin is not None
        contestant.stdin.write("go\n")
        contestant.stdin.flush()
    wins = [int(contestant.communicate(timeout=DEADLINE)[0]) for contestant in contestants]
    assert [contestant.returncode for contestant in contestants] == [0] * 4
    assert sum(wins) > 150


HOLD = """
from guard.host.ports import lease_port
leases = [lease_port() for _ in range(3)]
print(*[lease.port for lease in leases], flush=True)
sys.stdin.readline()
"""


def test_a_dead_process_holds_no_lease_and_its_files_go(own_folder: Path) -> None:
    holder = start(HOLD)
    held = [int(word) for word in line_of(holder).split()]
    with pytest.raises(PortBusy, match=rf"Port {held[0]} is leased by .*\(process {holder.pid}\).*Choose another"):
        lease_exact(held[0])
    (free,) = free_ports(1)
    other = lease_port(avoid=AllBut(held[0], free))
    assert other.port == free
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=DEADLINE)
    assert len(list(own_folder.glob("*/ports/*.lock"))) == 4
    again = lease_exact(held[0])
    again.release()
    # Ours went, and with it what the dead process left, but not what is held.
    (left,) = own_folder.glob("*/ports/*.lock")
    assert left.name.startswith(f"{free}.")
    other.release()


def at_first_lock(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Lets something happen where another process may be quicker: after a file is opened, before it is locked."""
    flock = fcntl.flock
    waiting = [happens]

    def late_flock(descriptor: int, operation: int) -> None:
        if waiting:
            waiting.pop()()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late_flock)


def test_a_file_removed_before_it_was_locked_is_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    held, keeps_the_folder = lease_port(), lease_port()
    at_first_lock(monkeypatch, held.release)
    lease = lease_exact(held.port)
    with pytest.raises(PortBusy, match="is leased by"):
        lease_exact(held.port)
    lease.release()
    keeps_the_folder.release()


def test_a_sweep_removes_no_lease_that_came_meanwhile(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = lease_port()
    (lock,) = own_folder.glob("*/ports/*.lock")
    later: list[PortLease] = []

    def changes_hands() -> None:
        held.release()
        later.append(lease_exact(held.port))

    at_first_lock(monkeypatch, changes_hands)
    ports._sweep(str(lock.parent))
    with pytest.raises(PortBusy, match="is leased by"):
        lease_exact(held.port)
    later[0].release()


def test_a_forked_child_cannot_give_back_its_parent_s_lease() -> None:
    lease = lease_port()
    child = os.fork()
    if child == 0:
        lease.release()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(PortBusy, match=f"process {os.getpid()}"):
        lease_exact(lease.port)
    lease.release()


def test_an_executed_child_inherits_no_lease() -> None:
    lease = lease_port()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    lease.release()
    lease_exact(lease.port).release()
    child.communicate(b"\n", timeout=DEADLINE)


def has_ipv6() -> bool:
    try:
        listen("::1", 0).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
@pytest.mark.parametrize("wanted", ["", "127.0.0.1", "localhost"])
def test_a_foreign_listener_is_got_round(host: str, wanted: str) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("no IPv6 here")
    taken, free = free_ports(2)
    with listen(host, taken):
        lease = lease_port(wanted, avoid=AllBut(taken, free))
        assert lease.port == free
        with pytest.raises(PortBusy, match=rf"Port {taken} is in use .* process {os.getpid()} \(.*listens on it"):
            lease_exact(taken, wanted)
        lease.release()
    lease_exact(taken, wanted).release()


LISTEN = """
import socket
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
sys.stdin.readline()
"""


@pytest.mark.uncounted
def test_the_process_that_listens_is_named() -> None:
    (port,) = free_ports(1)
    squatter = start(LISTEN, port, "--a-squatter")
    assert line_of(squatter) == "listening"
    with pytest.raises(PortBusy) as caught:
        lease_exact(port)
    message = str(caught.value)
    assert f"process {squatter.pid} ({sys.executable} -I -S -c " in message
    assert re.search(r"listens on it\. Choose another port, or set none and a free one is chosen\.$", message)
    squatter.communicate("\n", timeout=DEADLINE)


def test_connections_that_linger_take_no_port() -> None:
    (port,) = free_ports(1)
    with listen("127.0.0.1", port) as listener, socket.create_connection(("127.0.0.1", port)) as client:
        accepted, _ = listener.accept()
        accepted.close()
        assert client.recv(1) == b""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert any(row[3] == "06" and row[1].endswith(f":{port:04X}") for row in rows)
    lease = lease_exact(port)
    listen("127.0.0.1", port).close()
    lease.release()


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_number_that_is_no_port(port: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to 65535, not {port}"):
        lease_exact(port)


@pytest.mark.parametrize("host", ["192.0.2.77", "no-such-host.invalid"])
def test_a_host_that_is_not_this_machine(host: str) -> None:
    with pytest.raises(PortBusy, match="is no address of this machine"):
        lease_port(host)


PRIVILEGED = """
from guard.host.ports import PortBusy, lease_exact
try:
    lease_exact(80)
except PortBusy as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_port_that_only_root_may_open(own_folder: Path) -> None:
    first = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if first.exists() and int(first.read_text()) <= 80:
        pytest.skip("every user may open port 80 here")
    folder = Path("/tmp") / f"gang-ports-{os.getpid()}"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    # An interpreter and a copy of the package that every user may read: root's own may be in root's home.
    shutil.copytree(os.path.dirname(os.path.dirname(ports.__file__)), folder / "guard")
    command = ["/usr/bin/python3", "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{PRIVILEGED}"]
    try:
        subprocess.run([*command[:4], ""], check=True, timeout=DEADLINE, user=65534)
        environment = {"TMPDIR": str(folder)}
        run = subprocess.run(
            command, capture_output=True, timeout=DEADLINE, check=True, user=65534, group=65534, env=environment
        )
    except OSError as error:
        pytest.skip(f"no other user can run a Python here: {error}")
    finally:
        shutil.rmtree(folder)
    assert b"Port 80 may not be opened by this user: Permission denied." in run.stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("32768\t60999\n", (32768, 60999)),
        ("1024 65535", (1024, 65535)),
        ("", (32768, 60999)),
        ("one two", (32768, 60999)),
        ("60999 32768", (32768, 60999)),
        ("0 70000", (32768, 60999)),
        ("1 2 3", (32768, 60999)),
    ],
)
def test_the_kernel_s_range(tmp_path: Path, text: str, expected: tuple[int, int]) -> None:
    path = tmp_path / "range"
    path.write_text(text)
    assert ports._ephemeral_range(str(path)) == expected
    assert ports._ephemeral_range(str(tmp_path / "missing")) == (32768, 60999)


@pytest.mark.parametrize(
    "ephemeral",
    [(32768, 60999), (1024, 65535), (1024, 20999), (25000, 26000), (20000, 65535), (49152, 65535), (1, 65535)],
)
def test_candidates_are_outside_whatever_the_range_is(ephemeral: tuple[int, int]) -> None:
    *outside, last = ports._candidates(ephemeral)
    low, high = ephemeral
    assert last == range(max(low, 1024), high + 1)
    seen = [port for run in outside for port in run]
    assert sorted(seen) == [port for port in range(1024, 65536) if not low <= port <= high]
    assert all(outside)


def test_preferred_ports_come_first() -> None:
    assert ports._candidates((32768, 60999))[0] == range(20000, 30000)
    assert ports._candidates((1024, 65535)) == [range(1024, 65536)]


def test_the_base_folder_is_private(own_folder: Path) -> None:
    folder = base_folder()
    assert folder == str(own_folder / f"metaflow-gang-{os.getuid()}")
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert base_folder() == folder
    remove_if_empty(os.path.join(folder, "nothing"), folder)


def plant(place: Path, how: str) -> None:
    """What another user may have left where our folder should be."""
    if how == "file":
        place.write_text("")
    elif how == "link":
        (place.parent / "elsewhere").mkdir(mode=0o700, exist_ok=True)
        place.symlink_to(place.parent / "elsewhere")
    else:
        place.mkdir(mode=0o700)
        if how == "open":
            place.chmod(0o777)
        elif os.geteuid() == 0:
            os.chown(place, 12345, 12345)
        else:
            pytest.skip("only root can give a folder away")


def unplant(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


@pytest.mark.parametrize("how", ["file", "link", "open", "owned"])
def test_a_planted_folder_is_not_used(own_folder: Path, how: str) -> None:
    name = f"metaflow-gang-{os.getuid()}"
    plant(own_folder / name, how)
    lease = lease_port()
    (lock,) = (own_folder / f"{name}.1" / "ports").iterdir()
    assert lock.name.startswith(str(lease.port))
    lease.release()
    assert not (own_folder / f"{name}.1").exists()
    for number in range(1, 10):
        plant(own_folder / f"{name}.{number}", how)
    with pytest.raises(PermissionError, match=r"not private folders of user .* set TMPDIR to a folder of your own"):
        lease_port()
    unplant(own_folder)


def test_a_base_folder_swapped_in_between_is_noticed(own_folder: Path) -> None:
    def swap(folder: str) -> None:
        base = Path(folder).parent
        base.chmod(0o755)
        (base / "made").touch()

    with pytest.raises(PermissionError, match="was taken by another user"):
        private_folder.in_base("ports", swap)
    base = own_folder / f"metaflow-gang-{os.getuid()}"
    (base / "made").unlink()
    remove_if_empty(str(base / "ports"), str(base))


def test_things_are_made_in_the_base_folder_while_it_is_removed_all_the_time(own_folder: Path) -> None:
    base = own_folder / f"metaflow-gang-{os.getuid()}"
    done = threading.Event()

    def remove() -> None:
        while not done.wait(0.0001):
            remove_if_empty(str(base / "gangs"), str(base))

    def make(folder: str) -> str:
        path = os.path.join(folder, "gang")
        os.mkdir(path)
        return path

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        for _ in range(300):
            os.rmdir(private_folder.in_base("gangs", make))
    finally:
        done.set()
        remover.join(DEADLINE)
    remove_if_empty(str(base / "gangs"), str(base))


def test_a_maker_that_never_finds_its_folder_gives_up(own_folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        private_folder.in_base("gangs", lambda folder: os.mkdir(os.path.join(folder, "missing", "gang")))
    base = own_folder / f"metaflow-gang-{os.getuid()}"
    remove_if_empty(str(base / "gangs"), str(base))


def test_the_temporary_folder_is_the_one_of_tempfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    for value in (str(tmp_path), str(tmp_path / "missing"), ""):
        monkeypatch.setenv("TMPDIR", value)
        monkeypatch.setattr(tempfile, "tempdir", None)
        assert private_folder.temporary_folder() == tempfile.gettempdir()

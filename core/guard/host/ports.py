"""Ports under a lease, so that nobody takes one between its choice and its use.

A free port that is only looked up may be gone a moment later: the kernel gives it to an outgoing connection, or another
gang on the host looks it up too. So ports come from outside the kernel's ephemeral range, and each is leased: a file
named after the port, in a folder of this user, locked as long as the lease lasts. The kernel drops the lock when the
process dies; a file left behind is reused, or removed by the next release.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import socket
import time
from collections.abc import Container

from .port_owner import listener_on
from .private_folder import base_folder as base_folder
from .private_folder import in_base
from .private_folder import remove_if_empty as remove_if_empty

_FOLDER = "ports"
# What Linux uses where nobody set anything else.
_DEFAULT_EPHEMERAL = (32768, 60999)
# Preferred first: 20000 to 29999 is free of well-known services and of Kubernetes' node ports (30000 to 32767).
_PREFERENCE = (range(20000, 30000), range(30000, 65536), range(1024, 20000))
# How long an exact lease waits for a lock that a sweeping process holds for an instant, in seconds.
_PATIENCE = 0.3


class PortBusy(OSError):
    """A port cannot be had; the message is a sentence: who has it and what to do."""


class PortLease:
    """A port that is ours until :meth:`release`, or until this process ends."""

    def __init__(self, port: int, path: str, descriptor: int) -> None:
        self.port = port
        self._path = path
        self._descriptor = descriptor
        self._owner = os.getpid()

    def __repr__(self) -> str:
        return f"PortLease({self.port})"

    def release(self) -> None:
        """Gives the port back and removes its file, and the folders where they are empty. Twice is once."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        if os.getpid() != self._owner:
            # A forked child shares the lock, but the lease is its parent's.
            os.close(descriptor)
            return
        _drop(self._path, descriptor)
        sweep(os.path.dirname(self._path))


def sweep(folder: str = "") -> None:
    """Remove the leases of this user's processes that have died, and the folders where they are empty then.

    ``folder`` is that of the leases, by default this process's own; OSError where the base folder is unknown.
    """
    folder = folder or os.path.join(base_folder(), _FOLDER)
    _sweep(folder)
    remove_if_empty(folder, os.path.dirname(folder))


def lease_port(host: str = "", avoid: Container[int] = ()) -> PortLease:
    """Leases a port that binds now, on ``host`` and on every address of this machine.

    Parameters
    ----------
    host : str
        Address, or name, of this machine on which the port will be used; empty for any.
    avoid : container of int
        Ports not to take.

    Returns
    -------
    PortLease
        To be released when the port is no longer used.

    Raises
    ------
    PortBusy
        No port is left, or ``host`` is no address of this machine.

    Example
    -------
    ``lease = lease_port(); server.bind(("", lease.port)); ...; lease.release()``
    """
    addresses = _addresses(host)
    for ports in _candidates(_ephemeral_range()):
        start = int.from_bytes(os.urandom(4), "big") % len(ports)
        for port in itertools.chain(ports[start:], ports[:start]):
            if port in avoid:
                continue
            lease = _try_lease(port)
            if lease is None:
                continue
            if _refusal(port, addresses) is None:
                return lease
            lease.release()
    raise PortBusy(f"No free port is left on this machine for {host or 'any address'}: every one is in use or leased.")


def lease_exact(port: int, host: str = "") -> PortLease:
    """Leases the very port that a user asked for.

    Parameters
    ----------
    port : int
        1 to 65535.
    host : str
        As in :func:`lease_port`.

    Raises
    ------
    PortBusy
        The port is in use, is leased by another process, or may not be opened by this user.
    ValueError
        ``port`` is none.
    """
    if not 0 < port < 65536:
        raise ValueError(f"A port is a number from 1 to 65535, not {port}.")
    addresses = _addresses(host)
    deadline = time.monotonic() + _PATIENCE
    lease = _try_lease(port)
    while lease is None:
        if time.monotonic() > deadline:
            holder = _leaseholder(port)
            raise PortBusy(
                f"Port {port} is leased by another program of this user on this machine{holder}. "
                "Choose another port, or set none and a free one is chosen."
            )
        time.sleep(0.01)
        lease = _try_lease(port)
    refusal = _refusal(port, addresses)
    if refusal is None:
        return lease
    lease.release()
    if refusal in (errno.EACCES, errno.EPERM):
        raise PortBusy(f"Port {port} may not be opened by this user: {os.strerror(refusal)}. Choose one above 1023.")
    owner = listener_on(port)
    raise PortBusy(
        f"Port {port} is in use on this machine: {owner or 'another program'} listens on it. "
        "Choose another port, or set none and a free one is chosen."
    )


def _ephemeral_range(path: str = "/proc/sys/net/ipv4/ip_local_port_range") -> tuple[int, int]:
    """First and last port of the range from which the kernel serves outgoing connections."""
    try:
        with open(path, encoding="ascii") as file:
            low, high = (int(word) for word in file.read().split())
    except (OSError, ValueError):
        return _DEFAULT_EPHEMERAL
    return (low, high) if 0 < low <= high < 65536 else _DEFAULT_EPHEMERAL


def _candidates(ephemeral: tuple[int, int]) -> list[range]:
    """Runs of ports outside the ephemeral range, preferred first; that range itself comes last of all."""
    low, high = ephemeral
    runs = []
    for wanted in _PREFERENCE:
        runs += [range(wanted.start, min(wanted.stop, low)), range(max(wanted.start, high + 1), wanted.stop)]
    runs.append(range(max(low, 1024), high + 1))
    return [run for run in runs if run]


def _network_name() -> str:
    """Marks the network namespace: hosts that share the temporary folder, but not the network, share no port."""
    try:
        return f".{os.stat('/proc/self/ns/net').st_ino}"
    except OSError:
        return ""


def _try_lease(port: int) -> PortLease | None:
    """The lease of a port, bound or not; None where another holds it."""
    name = f"{port}{_network_name()}.lock"

    def lock(folder: str) -> PortLease | None:
        path = os.path.join(folder, name)
        while True:
            descriptor = _lock(path, create=True)
            if descriptor is None:
                return None
            if _is_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return PortLease(port, path, descriptor)
            os.close(descriptor)

    return in_base(_FOLDER, lock)


def _lock(path: str, create: bool) -> int | None:
    """A descriptor that holds the lock on the file at ``path``; None where another has it."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is_at(descriptor: int, path: str) -> bool:
    """Whether the locked file is still the one at ``path``: its last holder may have removed it before we locked."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _drop(path: str, descriptor: int) -> None:
    """Removes a locked file while it is locked, so that nobody can lock it in between, and lets go."""
    with contextlib.suppress(OSError):
        os.unlink(path)
    os.close(descriptor)


def _sweep(folder: str) -> None:
    """Removes what processes left behind that ended without a release."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                descriptor = _lock(path, create=False)
                if descriptor is None:
                    continue
                if _is_at(descriptor, path):
                    _drop(path, descriptor)
                else:
                    os.close(descriptor)


def _leaseholder(port: int) -> str:
    """`` (process 17)``, or nothing where the lock does not show it."""
    try:
        with open(os.path.join(base_folder(), _FOLDER, f"{port}{_network_name()}.lock"), encoding="ascii") as file:
            return f" (process {int(file.read())})"
    except (OSError, ValueError):
        return ""


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """Where a port must bind to be free: on both wildcards, and on ``host``."""
    wanted = [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]
    if host:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise PortBusy(f"{host!r} is no address of this machine: {error.strerror or error}.") from None
        family, _, _, _, address = found[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address[0], 0, *address[2:]))
            except OSError as error:
                raise PortBusy(f"{host} is no address of this machine: {error.strerror}.") from None
        wanted.append((family, str(address[0])))
    return wanted


def _refusal(port: int, addresses: list[tuple[socket.AddressFamily, str]]) -> int | None:
    """The errno with which the port refuses to bind on one of the addresses; None where it binds on all.

    With SO_REUSEADDR Linux still refuses a port on which anything listens, and grants one on which only closed
    connections linger (TIME_WAIT), which is what the program that will use the port does too.
    """
    for family, address in addresses:
        try:
            probe = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            continue
        with probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    return error.errno or errno.EADDRINUSE
    return None

"""The address and the interface by which this machine reaches another one, as the kernel knows them."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..exceptions import ToolMissing
from .efa import efa_devices, efa_variables

_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
# Any port will do: connecting a datagram socket chooses the route and sends nothing.
_DISCARD_PORT = 9
# Seconds between two attempts to find a host, doubled from the first to the longest; and when the user is told.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _TOLD_AFTER_S = 0.05, 1.0, 5.0


class NoRoute(OSError):
    """This machine cannot reach an address; the message is a sentence that says why."""


def require_tls() -> None:
    """Raise ToolMissing where this Python has no module ssl: what is large goes from node to node by TLS."""
    try:
        import ssl  # noqa: F401
    except ImportError as error:
        raise ToolMissing(
            f"This node's Python ({sys.executable}) has no module ssl ({error}), and files and large values go from "
            "node to node by TLS. Use a Python that was built with OpenSSL."
        ) from None


def own_address_towards(address: str) -> str:
    """The address of this machine from which packets to ``address`` leave.

    Parameters
    ----------
    address : str
        IPv4 or IPv6 address, or a name; of this machine or of another.

    Returns
    -------
    str
        Numeric address; a loopback address for a loopback address, and ``address`` itself where it is our own. One that
        is local to a link has its interface: "fe80::1%eth0".

    Raises
    ------
    NoRoute
        The name is unknown, or no route leads there.

    Example
    -------
    ``own_address_towards("10.0.0.7") == "10.0.0.2"``
    """
    if not address:
        # The resolver would take it for this machine.
        raise NoRoute("No such host: the address is empty.")
    try:
        found = socket.getaddrinfo(address, _DISCARD_PORT, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError, ValueError) as error:
        raise NoRoute(f"No such host: {address!r} ({getattr(error, 'strerror', None) or error}).") from None
    ours = {held_ip for _, held_ip in _held_or_none()}
    reason = "no address"
    for family, kind, protocol, _, target in found:
        try:
            # To a secondary address of its own the kernel would answer with the primary one.
            if _plain(ipaddress.ip_address(target[0])) in ours:
                return _numeric(target)
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(target)
                return _numeric(probe.getsockname())
        except OSError as error:
            reason = error.strerror or str(error)
    raise NoRoute(f"This machine has no way to {address!r}: {reason}. Check its network and the address.")


def own_address_within(address: str, timeout_s: float, say: Callable[[str], None]) -> str:
    """:func:`own_address_towards`, tried again until ``timeout_s`` seconds are over.

    The name service of a cluster knows a pod, and a pod its network, some seconds after it has started. ``say`` takes a
    line for the user, once, where that is not so soon.

    Raises
    ------
    NoRoute
        As it was at the end; at once where the address is empty.
    """
    begun = time.monotonic()
    pause, told = _FIRST_PAUSE_S, False
    while True:
        try:
            return own_address_towards(address)
        except NoRoute as error:
            waited = time.monotonic() - begun
            if not address:
                raise
            if waited + pause > timeout_s:
                raise NoRoute(f"{error} It was tried for {waited:.0f} s.") from None
            if waited > _TOLD_AFTER_S and not told:
                told = True
                say(f"{error} It is tried again for {timeout_s - waited:.0f} s (all_nodes_started_timeout).")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def interface_for(address: str) -> str | None:
    """The name of the interface that holds :func:`own_address_towards` ``(address)``, as NCCL and gloo want to know it.

    Returns
    -------
    str or None
        E.g. "eth0", or "lo" for this machine's loopback; None where ``address`` cannot be reached or the kernel does
        not tell.

    Example
    -------
    ``os.environ.setdefault("GLOO_SOCKET_IFNAME", interface_for(main_address) or "")``
    """
    try:
        own = own_address_towards(address)
    except NoRoute:
        return None
    wanted, _, scope = own.partition("%")
    wanted_ip = _plain(ipaddress.ip_address(wanted))
    if scope:
        return scope
    for index, held_ip in _held_or_none():
        # Every 127.x.y.z is the loopback's, though it holds 127.0.0.1 alone.
        if held_ip == wanted_ip or (wanted_ip.is_loopback and held_ip.is_loopback):
            return socket.if_indextoname(index)
    return None


def interfaces() -> dict[str, list[str]]:
    """The addresses of each interface of this machine; empty where the kernel does not say.

    Example
    -------
    ``interfaces() == {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.2"]}``
    """
    found: dict[str, list[str]] = {}
    for index, held in _held_or_none():
        found.setdefault(socket.if_indextoname(index), []).append(str(held))
    return found


_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


def _numeric(target: Any) -> str:
    """The address in what the socket module returns; a link-local one with the interface it is local to."""
    address = str(target[0])
    has_scope = len(target) == 4 and target[3] and "%" not in address
    return f"{address}%{socket.if_indextoname(target[3])}" if has_scope else address


def _plain(address: _Ip) -> _Ip:
    """The IPv4 address inside an IPv6 one that only maps it."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _held_or_none() -> list[tuple[int, _Ip]]:
    try:
        return _held_addresses()
    except OSError:
        return []


def _held_addresses() -> list[tuple[int, _Ip]]:
    """Index of the interface and address, for all addresses of this machine, secondary ones included.

    Asked over rtnetlink, since the older calls know one IPv4 address for each interface. Raises OSError where the
    kernel has no rtnetlink.
    """
    if not hasattr(socket, "AF_NETLINK"):
        raise OSError("This system has no rtnetlink.")
    request = struct.pack("=IHHIIBBBBI", 24, _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0, 0, 0, 0, 0, 0)
    held: list[tuple[int, _Ip]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        link.settimeout(5)
        link.sendto(request, (0, 0))
        while True:
            data = link.recv(1 << 16)
            while len(data) >= 16:
                length, kind = struct.unpack_from("=IH", data)
                if kind == _NLMSG_DONE:
                    return held
                if kind == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", data, 16)[0]
                    raise OSError(code, os.strerror(code))
                if kind == _RTM_NEWADDR:
                    held += _address_in(data[16:length])
                data = data[_aligned(length) :]


def _address_in(message: bytes) -> list[tuple[int, _Ip]]:
    """Interface index and address in one ifaddrmsg; empty where it holds none."""
    (index,) = struct.unpack_from("=I", message, 4)
    attributes: dict[int, bytes] = {}
    rest = message[8:]
    while len(rest) >= 4:
        length, kind = struct.unpack_from("=HH", rest)
        attributes[kind] = rest[4:length]
        rest = rest[_aligned(length) :]
    # On a point-to-point link IFA_ADDRESS is the peer's; IFA_LOCAL, where it is there, is ours.
    packed = attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS, b""))
    return [(index, ipaddress.ip_address(packed))] if len(packed) in (4, 16) else []


def _aligned(length: int) -> int:
    """Netlink aligns to four bytes; a length of zero would never end."""
    return max(length + 3 & ~3, 4)


def network_variables(other: str, environ: Mapping[str, str], adapters: Sequence[int] | None = None) -> dict[str, str]:
    """The variables by which NCCL, gloo and libfabric reach ``other``, where the user has set none.

    Parameters
    ----------
    other : str
        The address of another node.
    environ : mapping
        The user's.
    adapters : sequence of int, optional
        This node's EFA adapters, which are looked for where they are not given.

    Returns
    -------
    dict
        Names and values; empty where none is needed.
    """
    if _is_loopback(other):
        return _interface_variables(other, environ)
    efa = efa_variables(efa_devices() if adapters is None else adapters, environ)
    return {**_interface_variables(other, environ), **efa}


def _interface_variables(other: str, environ: Mapping[str, str]) -> dict[str, str]:
    """GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME; empty where the user set either of them.

    On loopback gloo alone gets one, which otherwise looks up the machine's own name, and that need not have an address.
    """
    if "NCCL_SOCKET_IFNAME" in environ or "GLOO_SOCKET_IFNAME" in environ:
        return {}
    interface = interface_for(other)
    if interface is None:
        return {}
    if _is_loopback(other):
        return {"GLOO_SOCKET_IFNAME": interface}
    return {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"

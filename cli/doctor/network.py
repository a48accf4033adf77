"""Network interfaces, the one that a gang would use, and what the user's variables say of them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ...core.machine.efa import efa_devices
from ...core.machine.network import interface_for, interfaces
from ...core.machine.proxies import PROXIES
from .findings import BROKEN, NOT_NEEDED, OK, Finding

NETWORK = "Network"

OUTSIDE = ("192.0.2.1", "2001:db8::1")
"""Addresses that nobody has (RFC 5737, RFC 3849): the way to them is the default route. Nothing is sent there."""

CHOSEN = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def addresses() -> list[Finding]:
    """The interfaces with their addresses, and the one that leads to other machines."""
    held = interfaces()
    told = "; ".join(f"{name} {', '.join(found)}" for name, found in held.items())
    if not any(address == "127.0.0.1" for found in held.values() for address in found):
        advice = "The nodes of a local gang meet at 127.0.0.1: ip link set lo up"
        return [Finding(NETWORK, "interfaces", BROKEN, told or "none", advice)]
    used = next(filter(None, map(interface_for, OUTSIDE)), None)
    found = [Finding(NETWORK, "interfaces", OK, told)]
    if used is None:
        advice = "A local gang needs none; a gang of several machines uses the interface that leads to the others."
        return [*found, Finding(NETWORK, "of a gang", NOT_NEEDED, "no way to other machines", advice)]
    return [*found, Finding(NETWORK, "of a gang", OK, f"lo on this machine; {used} to others, by the default route")]


def adapters() -> list[Finding]:
    """Amazon's EFA, where there is one."""
    devices = efa_devices()
    return [Finding(NETWORK, "EFA", OK, f"{len(devices)} adapters")] if devices else []


def variables(environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Interfaces that the user has named for NCCL and gloo, and proxies."""
    found = []
    for name in CHOSEN:
        value = environ.get(name, "")
        if value:
            there = value.startswith("^") or any(_names(wanted, list(interfaces())) for wanted in value.split(","))
            advice = "" if there else f"This machine has no such interface. Unset {name}: a gang finds its own."
            found.append(Finding(NETWORK, name, OK if there else BROKEN, value, advice))
    proxies = [name for name in PROXIES if environ.get(name) or environ.get(name.upper())]
    if proxies:
        found.append(Finding(NETWORK, "proxy", OK, f"{', '.join(proxies)}; nodes of a gang connect without it"))
    return found


def _names(wanted: str, known: list[str]) -> bool:
    """Whether one entry of such a variable, which is the beginning of a name unless it begins with "=", names one."""
    if wanted.startswith("="):
        return wanted[1:] in known
    return any(name.startswith(wanted) for name in known)

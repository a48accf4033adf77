"""Addresses and interfaces, asked of the real kernel: this machine's own, and a network made for the test."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import metaflow  # noqa: F401 - before any of its extensions
import pytest

from metaflow_extensions.gang.core.machine import network
from metaflow_extensions.gang.core.machine.network import NoRoute, interface_for, own_address_towards


def loopback_name() -> str:
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.1.1", "localhost"])
def test_loopback_stays_loopback(address: str) -> None:
    assert own_address_towards(address) in ("127.0.0.1", "127.0.1.1", "::1")
    assert interface_for(address) == loopback_name()


def test_an_address_of_ours_is_its_own_way() -> None:
    held = network._held_addresses()
    assert held
    names = dict(socket.if_nameindex())
    for index, address in held:
        # A link-local address needs its interface's name to be one address at all.
        scope = f"%{names[index]}" if address.version == 6 and address.is_link_local else ""
        assert own_address_towards(f"{address}{scope}") == f"{address}{scope}"
        assert interface_for(f"{address}{scope}") == names[index]


@pytest.mark.parametrize("name", ["no-such-host.invalid", "", "999.1.1.1", "x" * 300, "a\0b", "é" * 80])
def test_a_name_nobody_knows(name: str) -> None:
    with pytest.raises(NoRoute, match="No such host"):
        own_address_towards(name)
    assert interface_for(name) is None


SETUP = """
set -e
ip link set lo up
ip link add west type veth peer name east
ip address add 10.9.0.1/24 dev west
ip address add 10.9.0.2/24 dev west
ip address add 10.10.0.1/24 dev west label west:alias
ip address add 10.11.0.1 peer 10.11.0.99 dev east
ip address add fd12::1/64 dev west nodad
ip link set west up
ip link set east up
exec "$@"
"""

ASK = """
import json, sys, metaflow
from metaflow_extensions.gang.core.machine.network import NoRoute, interface_for, own_address_towards
def own(address):
    try:
        return own_address_towards(address)
    except NoRoute as error:
        return str(error)
print(json.dumps([[own(address), interface_for(address)] for address in sys.argv[1:]]))
"""


def test_a_network_of_its_own(tmp_path: Path) -> None:
    if not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("needs iproute2 and util-linux")
    unshare = ["unshare", "--map-root-user", "--net"]
    made = subprocess.run([*unshare, "sh", "-c", SETUP, "sh", "true"], capture_output=True, timeout=60, check=False)
    if made.returncode:
        pytest.skip(f"this machine lets nobody make a network: {made.stderr.decode(errors='replace').strip()}")
    expected = {
        "10.9.0.77": ["10.9.0.1", "west"],
        "10.9.0.2": ["10.9.0.2", "west"],
        "10.10.0.7": ["10.10.0.1", "west"],
        "10.11.0.99": ["10.11.0.1", "east"],
        "fd12::7": ["fd12::1", "west"],
        "::ffff:10.9.0.7": ["::ffff:10.9.0.1", "west"],
        "127.0.0.1": ["127.0.0.1", "lo"],
    }
    command = [*unshare, "sh", "-c", SETUP, "sh", sys.executable, "-c", ASK, *expected, "8.8.8.8"]
    run = subprocess.run(command, capture_output=True, timeout=120, check=True, cwd=tmp_path)
    *answers, lost = json.loads(run.stdout)
    assert dict(zip(expected, answers, strict=True)) == expected
    assert lost[1] is None
    assert "no way to '8.8.8.8': Network is unreachable" in lost[0]

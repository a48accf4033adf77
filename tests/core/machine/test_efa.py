"""EFA adapters as the kernel shows them, and what programs are told of them."""

from __future__ import annotations

from pathlib import Path

import metaflow  # noqa: F401 - before any import of the extension
import pytest

from metaflow_extensions.gang.core.machine.efa import efa_devices, efa_variables
from metaflow_extensions.gang.core.machine.network import network_variables


def machine(folder: Path, devices: dict[str, tuple[str, str]], given: tuple[str, ...]) -> tuple[str, str]:
    """A machine's /sys with ``devices`` (name to vendor and device), and a /dev with those that were ``given``."""
    for name, (vendor, device) in devices.items():
        entry = folder / "sys/class/infiniband_verbs" / name / "device"
        entry.mkdir(parents=True)
        (entry / "vendor").write_text(f"{vendor}\n")
        (entry / "device").write_text(f"{device}\n")
    (folder / "sys/class/infiniband_verbs").mkdir(parents=True, exist_ok=True)
    (folder / "sys/class/infiniband_verbs/abi_version").write_text("6\n")
    (folder / "dev/infiniband").mkdir(parents=True)
    for name in given:
        (folder / "dev/infiniband" / name).touch()
    return str(folder / "sys"), str(folder / "dev")


P5 = {f"uverbs{number}": ("0x1d0f", "0xefa2") for number in range(4)}


def test_adapters_that_the_container_was_given(tmp_path: Path) -> None:
    sys, dev = machine(tmp_path, P5, ("uverbs0", "uverbs2"))
    assert efa_devices(sys, dev) == (0xEFA2, 0xEFA2)


def test_other_makers_adapters_are_none(tmp_path: Path) -> None:
    mellanox = {"uverbs0": ("0x15b3", "0x101e"), "uverbs1": ("0x1d0f", "0xec20"), "uverbs2": ("nonsense", "0xefa2")}
    sys, dev = machine(tmp_path, mellanox, ("uverbs0", "uverbs1", "uverbs2"))
    assert efa_devices(sys, dev) == ()


def test_a_machine_without_any(tmp_path: Path) -> None:
    assert efa_devices(str(tmp_path / "sys"), str(tmp_path / "dev")) == ()


@pytest.mark.parametrize(
    ("devices", "environ", "expected"),
    [
        ((), {}, {}),
        ((0xEFA2,) * 32, {}, {"FI_PROVIDER": "efa", "FI_EFA_FORK_SAFE": "1", "FI_EFA_USE_DEVICE_RDMA": "1"}),
        # libfabric aborts where a device is told to do what it cannot.
        ((0xEFA0,), {}, {"FI_PROVIDER": "efa", "FI_EFA_FORK_SAFE": "1"}),
        ((0xEFA1,) * 4, {}, {"FI_PROVIDER": "efa", "FI_EFA_FORK_SAFE": "1"}),
        ((0xEFA2, 0xEFA0), {}, {"FI_PROVIDER": "efa", "FI_EFA_FORK_SAFE": "1"}),
        ((0xEFA2,), {"FI_PROVIDER": "tcp"}, {}),
        ((0xEFA2,), {"FI_PROVIDER": "efa"}, {}),
        ((0xEFA2,), {"FI_EFA_USE_DEVICE_RDMA": "0"}, {"FI_PROVIDER": "efa", "FI_EFA_FORK_SAFE": "1"}),
    ],
)
def test_what_programs_are_told(devices: tuple[int, ...], environ: dict[str, str], expected: dict[str, str]) -> None:
    assert efa_variables(devices, environ) == expected


def test_interfaces_of_the_users_leave_the_adapter_alone() -> None:
    mine = {"NCCL_SOCKET_IFNAME": "eth7"}
    assert network_variables("10.0.0.9", mine, (0xEFA2,)) == efa_variables((0xEFA2,), mine)


def test_on_one_machine_there_is_nothing_to_reach() -> None:
    assert "FI_PROVIDER" not in network_variables("127.0.0.1", {}, (0xEFA2,))

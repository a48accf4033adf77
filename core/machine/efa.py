"""AWS's Elastic Fabric Adapter: whether this node has one, and the variables with which programs use it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

_VENDOR = 0x1D0F
"""Amazon's number among those who make PCI devices."""

_FIRST, _LAST = 0xEFA0, 0xEFAF
"""PCI numbers of the adapters, each a generation."""

_FIRST_WITH_RDMA = 0xEFA2
"""From this generation on libfabric itself expects a device to read and write remote memory. Where one that cannot is
told to, libfabric aborts the program, so the older ones, of which only some can, are left as they are.
"""


def efa_devices(sys: str = "/sys", dev: str = "/dev") -> tuple[int, ...]:
    """The PCI numbers of the adapters that this process may open, e.g. 0xEFA2 four times; empty where it has none.

    Parameters
    ----------
    sys, dev : str
        Where the kernel shows its devices. A container sees those of the whole machine in the first, and those that
        it was given in the second.
    """
    base = os.path.join(sys, "class", "infiniband_verbs")
    try:
        names = sorted(name for name in os.listdir(base) if name.startswith("uverbs"))
    except OSError:
        return ()
    found = []
    for name in names:
        is_open = os.access(os.path.join(dev, "infiniband", name), os.R_OK | os.W_OK)
        vendor, device = (_number(os.path.join(base, name, "device", file)) for file in ("vendor", "device"))
        if is_open and vendor == _VENDOR and _FIRST <= device <= _LAST:
            found.append(device)
    return tuple(found)


def _number(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read(), 16)
    except (OSError, ValueError):
        return -1


def efa_variables(devices: Sequence[int], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of libfabric, which NCCL's plugin, MPI and others use, where there are adapters; what the user
    has set stays.

    Parameters
    ----------
    devices : sequence of int
        From :func:`efa_devices`.
    environ : mapping
        Of the user. One who has chosen a provider has chosen all of it.

    Example
    -------
    ``efa_variables((0xEFA2,), {})["FI_PROVIDER"] == "efa"``
    """
    if not devices or "FI_PROVIDER" in environ:
        return {}
    variables = {"FI_PROVIDER": "efa"}
    # Without it a process that forks, as the workers of a DataLoader, could lose registered memory (kernels before
    # 5.15; of no effect on later ones).
    variables["FI_EFA_FORK_SAFE"] = "1"
    if min(devices) >= _FIRST_WITH_RDMA:
        variables["FI_EFA_USE_DEVICE_RDMA"] = "1"
    return {name: value for name, value in variables.items() if name not in environ}

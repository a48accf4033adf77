"""AWS's Trainium and Inferentia: how many NeuronCores this node's programs may use, one for each rank."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_CORES_PER_DEVICE = 2
"""Of Trainium and Inferentia2, where the driver does not report it."""

_PHYSICAL_OF_TRAINIUM2 = 8
"""Its cores are used two at a time unless the user says otherwise."""


def neuron_cores(environ: Mapping[str, str] | None = None, dev: str = "/dev", sys: str = "/sys") -> int:
    """NeuronCores that a program started now would see; 0 where there is no device.

    Parameters
    ----------
    environ : mapping, optional
        ``os.environ`` where None. What the user has chosen in it (NEURON_RT_VISIBLE_CORES, NEURON_RT_NUM_CORES, and
        how many physical cores make a logical one) counts.
    dev, sys : str
        Where the devices are that this container was given, and where the kernel describes them.
    """
    environ = os.environ if environ is None else environ
    try:
        names = [name for name in os.listdir(dev) if re.fullmatch(r"neuron\d+", name)]
    except OSError:
        names = []
    names = [name for name in names if os.access(os.path.join(dev, name), os.R_OK | os.W_OK)]
    if not names:
        return 0
    chosen = _in_ranges(environ.get("NEURON_RT_VISIBLE_CORES", "")) or _number(environ.get("NEURON_RT_NUM_CORES", ""))
    return chosen or sum(_cores(os.path.join(sys, "devices/virtual/neuron_device", name), environ) for name in names)


def _cores(folder: str, environ: Mapping[str, str]) -> int:
    try:
        with open(os.path.join(folder, "core_count"), encoding="ascii") as file:
            physical = _number(file.read())
    except (OSError, ValueError):
        physical = 0
    if physical != _PHYSICAL_OF_TRAINIUM2:
        return physical or _CORES_PER_DEVICE
    together = environ.get("NEURON_LOGICAL_NC_CONFIG") or environ.get("NEURON_RT_VIRTUAL_CORE_SIZE") or "2"
    return physical // max(_number(together), 1)


def _in_ranges(text: str) -> int:
    """How many "0-3,7" names; 0 where it is no such list."""
    count = 0
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if found is None:
            return 0
        count += int(found[2] or found[1]) - int(found[1]) + 1
    return max(count, 0)


def _number(text: str) -> int:
    return int(text) if text.strip().isdecimal() else 0

"""AMD GPUs by the files that their driver has in /sys."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING

from .container import read_text

if TYPE_CHECKING:
    from ..loop.framing import Header


def _number(path: str) -> int | None:
    text = read_text(path).strip()
    return int(text) if text.isdecimal() else None


def _names(folder: str) -> list[str]:
    with suppress(OSError):
        return sorted(os.listdir(folder))
    return []


class Amd:
    """The GPUs below ``root``; there may be none."""

    def __init__(self, root: str = "/sys/class/drm") -> None:
        folders = [f"{root}/{name}/device" for name in _names(root) if name.startswith("card")]
        self.folders = [folder for folder in folders if os.path.exists(f"{folder}/gpu_busy_percent")]

    def sample(self) -> list[Header]:
        """As :meth:`.nvml.Nvml.sample`; ``xid`` is NVIDIA's."""
        found = []
        for folder in self.folders:
            monitors = [f"{folder}/hwmon/{name}/power1_average" for name in _names(f"{folder}/hwmon")]
            power = next(filter(None, map(_number, monitors)), None)
            errors = read_text(f"{folder}/ras/umc_err_count").split()
            ecc = next((int(b) for a, b in pairwise(errors) if a == "ue:" and b.isdecimal()), None)
            found.append(
                {
                    "util": _number(f"{folder}/gpu_busy_percent"),
                    "memory": _number(f"{folder}/mem_info_vram_used"),
                    "total": _number(f"{folder}/mem_info_vram_total"),
                    "power": None if power is None else round(power / 1e6, 1),
                    "ecc": ecc,
                    "xid": None,
                }
            )
        return found

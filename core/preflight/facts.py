"""What one node reports before the body begins: versions, GPUs, shared memory, space for files, open files."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path

from ..guard.host.private_folder import temporary_folder
from ..guard.samples.amd import Amd

SHM = "/dev/shm"

NCCL_AND_CUDA = (
    "nvidia-nccl-cu12",
    "nvidia-nccl-cu13",
    "nvidia-cuda-runtime-cu12",
    "nvidia-cuda-runtime",
)
"""Packages of NVIDIA that bring NCCL and CUDA's runtime; a framework's own version may name CUDA, too: 2.9.0+cu128."""

MOST = 900
"""Characters of one node's facts. They travel in its request to join, of which the hub takes 1,000 from a value."""


@dataclass(frozen=True)
class Facts:
    """One node's. A number is -1 where it is not known, or has no limit.

    Attributes
    ----------
    versions : dict of str to str
        By the name that a table shows: "Python", "torch", "NVIDIA driver".
    gpus : int
        Which programs of the node see; AMD's, where there is none of NVIDIA.
    ranks : int
        How many the node will have, as far as that is known before the body.
    shm : int
        Bytes of /dev/shm, free or not.
    room : int
        Free bytes of the folder for temporary files.
    files : int
        Open files that a process may have, before it raises its own limit.
    """

    versions: dict[str, str]
    gpus: int
    ranks: int
    shm: int
    room: int
    files: int

    def as_text(self) -> str:
        """For the node's request to join."""
        text = json.dumps(asdict(self), separators=(",", ":"))
        return text if len(text) <= MOST else ""


def facts_of(text: object) -> Facts | None:
    """The facts that a node has sent; None where it has sent none, or some of another kind."""
    try:
        data = json.loads(str(text))
        facts = Facts(**{field.name: data[field.name] for field in fields(Facts)})
    except (ValueError, TypeError, KeyError):
        return None
    numbers = (facts.gpus, facts.ranks, facts.shm, facts.room, facts.files)
    plain = all(type(number) is int for number in numbers) and isinstance(facts.versions, dict)
    return facts if plain and all(isinstance(version, str) for version in facts.versions.values()) else None


def own_facts(distributions: Sequence[str], gpus: int, ranks: int, proc: str = "/proc/driver/nvidia") -> Facts:
    """This node's. Nothing is imported or started for it.

    Parameters
    ----------
    distributions : sequence of str
        Names under which pip may have installed what the launcher starts; those that it has not are left out.
    gpus, ranks : int
        See :class:`Facts`.
    proc : str
        Where NVIDIA's driver shows itself.
    """
    versions = {"Python": platform.python_version(), **_installed(distributions)}
    if "torch" in versions or "jax" in versions or gpus:
        versions |= _installed(NCCL_AND_CUDA)
    if driver := driver_version(proc):
        versions["NVIDIA driver"] = driver
    return Facts(
        versions,
        gpus or len(Amd().folders),
        ranks,
        _size(SHM),
        _free(temporary_folder()),
        resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def _installed(distributions: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in distributions:
        try:
            found[name] = str(metadata.version(name))[:60]
        except metadata.PackageNotFoundError:
            continue
    return found


def driver_version(proc: str = "/proc/driver/nvidia") -> str:
    """The version of NVIDIA's kernel module; "" where there is none, or it cannot be read."""
    try:
        text = Path(proc, "version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.search(r"Kernel Module(?: for \S+)?\s+([\d.]+)", text)
    return match[1] if match else ""


def _size(folder: str) -> int:
    try:
        status = os.statvfs(folder)
    except OSError:
        return 0
    return status.f_blocks * status.f_frsize


def _free(folder: str) -> int:
    try:
        status = os.statvfs(folder)
    except OSError:
        return -1
    return status.f_bavail * status.f_frsize

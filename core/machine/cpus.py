"""How many processors this process may use: the machine's, limited by affinity, the container's quota and Slurm."""

from __future__ import annotations

import os
import re

OF_SLURM = "SLURM_CPUS_ON_NODE"
"""Processors of this node that a Slurm job has; not every cluster has Slurm keep the job's processes to them."""


def cpu_count(proc: str = "/proc/self") -> int:
    """Processors that this process may keep busy, at least 1.

    The smallest of its affinity and of every CPU quota of its control groups (versions 1 and 2), a quota of two and a
    half counting as two: threads beyond it would only be throttled. In a Slurm job, no more than the job was given.

    Parameters
    ----------
    proc : str
        The process's folder under /proc.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get(OF_SLURM, "")
    of_slurm = [int(given)] if given.isascii() and given.isdigit() else []
    return max(1, min([count, *of_slurm, *(int(quota) for quota in _quotas(proc))]))


def _quotas(proc: str) -> list[float]:
    """CPU quotas, in processors, of the control groups that hold the process, from its own up to the root."""
    quotas = []
    for folder, mount in _groups(proc):
        while True:
            quota = _quota_v2(folder) or _quota_v1(folder)
            if quota is not None:
                quotas.append(quota)
            if folder == mount or len(folder) <= len(mount):
                break
            folder = os.path.dirname(folder)
    return quotas


def _quota_v2(folder: str) -> float | None:
    """``cpu.max`` holds "max 100000" or "150000 100000": microseconds, and the period they are granted for."""
    words = _words(f"{folder}/cpu.max")
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None


def _quota_v1(folder: str) -> float | None:
    quota, period = _words(f"{folder}/cpu.cfs_quota_us"), _words(f"{folder}/cpu.cfs_period_us")
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None


def _words(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []


def _groups(proc: str) -> list[tuple[str, str]]:
    """Folder of the process's control group and the mount it is under, for version 2 and for version 1's ``cpu``."""
    own: dict[str, str] = {}
    for line in _lines(f"{proc}/cgroup"):
        _, controllers, path = line.rstrip("\n").split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    groups = []
    for line in _lines(f"{proc}/mountinfo"):
        before, _, after = line.partition(" - ")
        root, mount = (_unescaped(word) for word in before.split()[3:5])
        kind, _, options = after.split(maxsplit=2)
        is_v1 = kind == "cgroup" and "cpu" in options.strip().split(",")
        group = own.get("") if kind == "cgroup2" else own.get("cpu") if is_v1 else None
        if group is not None:
            # A container sees its own group as the mount's root; what lies outside of it is not to be seen.
            inside = os.path.relpath(group, root)
            groups.append((mount if inside.startswith("..") else os.path.normpath(f"{mount}/{inside}"), mount))
    return groups


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return list(file)
    except OSError:
        return []


def _unescaped(word: str) -> str:
    """mountinfo writes a blank in a path as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)

"""The resources that a node offers Ray: processors, GPUs, memory, and an object store in shared memory."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

MIB = 1 << 20

STORE_SHARE = 0.3
"""Of a node's memory for the object store, as Ray has it by default."""

STORE_MOST = 200 << 30
"""Bytes; Ray's own limit for what it chooses itself."""

STORE_LEAST = 76 * MIB
"""Bytes; Ray refuses a store of less than 75 MiB."""

SLOW_STORE_MOST = 2 << 30
"""Bytes of a store outside of shared memory, where objects go through the disk's cache."""

SHM = "/dev/shm"
SHM_SHARE = 0.95
"""How much of /dev/shm's free room the store may take: Ray, and others, put more there."""


@dataclass(frozen=True)
class Offer:
    """The resources that ``ray start`` registers for this node.

    Parameters
    ----------
    cpus, gpus : int
    memory : int
        Bytes for tasks and actors.
    object_store : int
        Bytes of the object store.
    in_shared_memory : bool
        Whether /dev/shm has room for it; else it lies in Ray's folder for temporary files.
    notice : str
        A sentence for the user, or "".
    """

    cpus: int
    gpus: int
    memory: int
    object_store: int
    in_shared_memory: bool = True
    notice: str = ""


def offer(
    cpus: int,
    gpus: int,
    memory_mb: int | None,
    shared_mb: int | None,
    available: int,
    shm_free: int,
    sharing: int,
) -> Offer:
    """Divide a node's memory between Ray's tasks and its object store.

    Parameters
    ----------
    memory_mb, shared_mb : int, optional
        MiB that the step's decorators ask for as ``memory`` and ``shared_memory``.
    available : int
        Bytes of memory that are free on this machine or in this container.
    shm_free : int
        Bytes that are free in /dev/shm.
    sharing : int
        How many nodes of the gang this machine has.

    Example
    -------
    ``offer(4, 0, 10_000, None, ...).object_store == int(10_000 * MIB * 0.3)``, where /dev/shm has room for it
    """
    memory = memory_mb * MIB if memory_mb else available // sharing
    room = int(shm_free * SHM_SHARE) // sharing
    wanted = shared_mb * MIB if shared_mb else min(int(memory * STORE_SHARE), STORE_MOST)
    wanted = max(wanted, STORE_LEAST)
    store, fits, notice = wanted, True, ""
    if room < wanted:
        fits = room >= STORE_LEAST
        store = room if fits else min(wanted, SLOW_STORE_MOST)
        # Of what it chose itself Ray takes what is there, without a word.
        if not fits or (shared_mb and shm_free < shared_mb * MIB * SHM_SHARE):
            notice = _too_small(shm_free, sharing, wanted, store, fits)
    return Offer(cpus, gpus, max(memory - store, 0), store, fits, notice)


def _too_small(shm_free: int, sharing: int, wanted: int, store: int, fits: bool) -> str:
    among = f", for {sharing} nodes on this machine" if sharing > 1 else ""
    where = f"{store // MIB} MiB there" if fits else "Ray's temporary folder on the disk, which is slower"
    return (
        f"/dev/shm has {shm_free // MIB} MiB free{among}, and Ray's object store should have {wanted // MIB} MiB: it "
        f"gets {where}. Ask for more with @kubernetes(shared_memory=...) or @batch(shared_memory=...), or by "
        "--shm-size where you start the container yourself."
    )


def shared_memory_free() -> int:
    """Bytes that are free in /dev/shm; 0 where there is none."""
    try:
        status = os.statvfs(SHM)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def memory_available() -> int:
    """Bytes of memory that are free: on the machine, or in its container where that has a limit."""
    free = [_meminfo()]
    with contextlib.suppress(OSError, ValueError):
        free.append(_number("/sys/fs/cgroup/memory.max") - _number("/sys/fs/cgroup/memory.current"))
    with contextlib.suppress(OSError, ValueError):
        folder = "/sys/fs/cgroup/memory"
        free.append(_number(f"{folder}/memory.limit_in_bytes") - _number(f"{folder}/memory.usage_in_bytes"))
    return max(0, min(free))


def _meminfo() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))


def _number(path: str) -> int:
    """Raise ValueError where there is no limit ("max")."""
    with open(path, encoding="ascii") as file:
        return int(file.read())

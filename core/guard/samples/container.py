"""The container's processors, memory, network and disks, from its control group (versions 1 and 2) and /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

_NO_LIMIT = 1 << 60
"""Version 1 of control groups has a number near 2**63 where there is no limit."""

_SECTOR = 512
"""Bytes, in /proc/diskstats, whatever the disk's own are."""


def read_text(path: str) -> str:
    """What a file of the kernel has; "" where it cannot be read."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() else None


class Container:
    """The container, or machine, of this process.

    Parameters
    ----------
    proc, groups : str
        Where /proc and the control groups are.
    """

    def __init__(self, proc: str = "/proc", groups: str = "/sys/fs/cgroup") -> None:
        self._proc, self._groups = proc, groups
        self._memory = next(self._memory_files(), None)
        self._cpu = next(self._cpu_files(), None)
        self._ticks = os.sysconf("SC_CLK_TCK")
        self._last = self._counts()

    def _folders(self, controller: str) -> Iterator[tuple[int, str]]:
        """Version and folder of this process's group that may have ``controller``: its own path, or the namespace's."""
        for line in read_text(f"{self._proc}/self/cgroup").splitlines():
            _, _, rest = line.partition(":")
            names, _, path = rest.partition(":")
            if not names:
                yield from ((2, f"{self._groups}{place}") for place in (path.rstrip("/"), ""))
            elif controller in names.split(","):
                for base in (controller, names):
                    yield from ((1, f"{self._groups}/{base}{place}") for place in (path.rstrip("/"), ""))

    def _memory_files(self) -> Iterator[tuple[str, str, str, str]]:
        """Usage, limit and stat of the group's memory, and what of the stat can be given back at once."""
        for version, folder in self._folders("memory"):
            names = ("current", "max") if version == 2 else ("usage_in_bytes", "limit_in_bytes")
            usage, limit = (f"{folder}/memory.{name}" for name in names)
            if read_text(usage):
                yield usage, limit, f"{folder}/memory.stat", "inactive_file" if version == 2 else "total_inactive_file"

    def _cpu_files(self) -> Iterator[tuple[str, str, float]]:
        """A file with the group's CPU time, the field in it ("" for a lone number), and how many are a second."""
        for version, folder in self._folders("cpuacct"):
            path, field, unit = (
                (f"{folder}/cpu.stat", "usage_usec", 1e6) if version == 2 else (f"{folder}/cpuacct.usage", "", 1e9)
            )
            if read_text(path):
                yield path, field, unit

    def memory(self) -> tuple[int, int]:
        """Bytes in use, without what the kernel only keeps of files, and the limit: the container's, or the machine's
        memory where that is less; 0 where unknown.
        """
        info = _fields(read_text(f"{self._proc}/meminfo"))
        total = info.get("MemTotal:", 0) * 1024
        if self._memory is not None:
            usage, limit, stat, cache = self._memory
            used, most = _number(read_text(usage)), _number(read_text(limit))
            if used is not None and most is not None and most < _NO_LIMIT and (not total or most < total):
                return max(0, used - _fields(read_text(stat)).get(cache, 0)), most
        return max(0, total - info.get("MemAvailable:", 0) * 1024), total

    def _cpu_s(self) -> float:
        """Seconds of CPU that the container, or the machine, has used."""
        if self._cpu is not None:
            path, field, unit = self._cpu
            text = read_text(path)
            used = _fields(text).get(field) if field else _number(text)
            if used is not None:
                return used / unit
        words = read_text(f"{self._proc}/stat").partition("\n")[0].split()[1:9]
        numbers = [int(word) for word in words if word.isdecimal()]
        return (sum(numbers) - sum(numbers[3:5])) / self._ticks  # without idle and iowait

    def _counts(self) -> tuple[float, float, int, int, int, int]:
        received = sent = read = written = 0
        for line in read_text(f"{self._proc}/net/dev").splitlines()[2:]:
            name, _, rest = line.partition(":")
            words = rest.split()
            if name.strip() != "lo" and len(words) > 8:
                received, sent = received + int(words[0]), sent + int(words[8])
        for line in read_text(f"{self._proc}/diskstats").splitlines():
            words = line.split()
            if len(words) > 9 and not words[2].startswith(("loop", "ram", "dm-", "md")) and not _is_part(words[2]):
                read, written = read + int(words[5]) * _SECTOR, written + int(words[9]) * _SECTOR
        return time.monotonic(), self._cpu_s(), received, sent, read, written

    def totals(self) -> dict[str, int]:
        """``rx``, ``tx``, ``read`` and ``written`` as bytes since the machine's start, at the last sample."""
        return dict(zip(("rx", "tx", "read", "written"), self._last[2:], strict=False))

    def sample(self) -> dict[str, float]:
        """Since the last sample: ``cpu`` (processors kept busy), ``rx``, ``tx``, ``read`` and ``written`` (bytes a
        second); now: ``memory`` and ``limit`` (bytes).
        """
        last, self._last = self._last, self._counts()
        passed = max(self._last[0] - last[0], 1e-3)
        rates = [max(0.0, (now - before) / passed) for now, before in zip(self._last[1:], last[1:])]  # noqa: B905
        used, limit = self.memory()
        found: dict[str, float] = {"cpu": round(rates[0], 3), "memory": used, "limit": limit}
        found.update({name: round(rate) for name, rate in zip(("rx", "tx", "read", "written"), rates[1:])})  # noqa: B905
        return found


def _is_part(name: str) -> bool:
    """Whether a name of /proc/diskstats is that of a part of a disk, which is counted by the whole: sda1, nvme0n1p2."""
    if name.startswith(("nvme", "mmcblk")):
        return "p" in name[4:].lstrip("0123456789")
    return name[-1:].isdigit() and name.startswith(("sd", "vd", "xvd", "hd"))


def _fields(text: str) -> dict[str, int]:
    """The numbers of lines "NAME NUMBER ..."."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[1].isdecimal():
            found[words[0]] = int(words[1])
    return found

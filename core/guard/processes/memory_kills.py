"""Whether the kernel has ended a process here for lack of memory: it counts such kills for each container."""

from __future__ import annotations


def kills() -> int | None:
    """How many processes of this control group, or of one below it, have been ended so; None where unknown."""
    for path, field in _files():
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                for line in file:
                    name, _, number = line.partition(" ")
                    if name == field:
                        return int(number)
        except (OSError, ValueError):
            continue
    return None


def _files() -> list[tuple[str, str]]:
    """Where the count may be, and its name there: of version 2 of control groups, of version 1; in this namespace."""
    found = []
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="replace") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return []
    for group in groups:
        if len(group) == 3 and not group[1]:
            found += [(f"/sys/fs/cgroup{path}/memory.events", "oom_kill") for path in (group[2].rstrip("/"), "")]
        elif len(group) == 3 and "memory" in group[1].split(","):
            found += [
                (f"/sys/fs/cgroup/memory{path}/memory.oom_control", "oom_kill") for path in (group[2].rstrip("/"), "")
            ]
    return found


_AT_START = kills()


def ran_out() -> bool:
    """Whether there was such a kill since this process started."""
    now = kills() if _AT_START is not None else None
    return now is not None and _AT_START is not None and now > _AT_START

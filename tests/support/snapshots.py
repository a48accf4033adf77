"""What lies in folders at one moment, to be compared with another."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def looks(*folders: Path) -> dict[str, tuple[object, ...]]:
    """Everything below the folders: kind, owner, size, time of change, content."""
    found: dict[str, tuple[object, ...]] = {}
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            if not os.path.lexists(path):
                found[str(path)] = ("missing",)
                continue
            status = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[str(path)] = (status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns, content)
    return found

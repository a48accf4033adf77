"""Tasks of an ordinary user on hosts: a folder that they may enter, and an account of their own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..hosts import Account
from ..requirements import require_tool


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="gang-ssh-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def account(name: str, folder: Path) -> Account | None:
    """None for root, else an ordinary user with a home of their own."""
    if name == "root":
        return None
    home = folder / "home"
    home.mkdir(mode=0o700)
    # A bash that sshd has started reads it, unless it is told otherwise; it would spoil what commands write.
    (home / ".bashrc").write_text("echo noise; export HOSTILE=noise\n")
    return Account(name, 47_113, home, require_tool("bash"))

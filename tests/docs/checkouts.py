"""A copy of this checkout, to build the package from: building leaves files in the checkout."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.paths import ROOT

FOLDERS = ("backends", "cli", "core", "launchers", "plugins", "toplevel")
"""The folders of the package, as they lie in the checkout."""


def copy_of_checkout(folder: Path) -> Path:
    """Copy what the build reads into ``folder``: old files of an earlier build would get into a wheel."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in (*FOLDERS, "stubs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return folder

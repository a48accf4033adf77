"""Hosts whose Python has other packages than those of the others."""

from __future__ import annotations

from pathlib import Path


def distribution(folder: Path, name: str, version: str) -> str:
    """A folder for PYTHONPATH in which this distribution seems to be installed."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return str(folder)


def without(folder: Path, name: str) -> dict[str, str]:
    """The variables by which Python programs have no module ``name``: they neither find nor import it."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules[{name!r}] = None\n")
    return {"PYTHONPATH": str(folder)}

"""What a test needs of the machine: said once, skipped on a contributor's machine, an error in CI."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import NoReturn

import pytest

_SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"


def in_ci() -> bool:
    """Whether this is a run in which nothing may be skipped for want of a tool (``CI`` is set and not "false")."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false", "no")


def missing(reason: str) -> NoReturn:
    """Fail in CI, skip elsewhere: a check that CI leaves out is a check that nobody makes."""
    if in_ci():
        pytest.fail(f"{reason} In CI nothing is skipped.", pytrace=False)
    pytest.skip(reason)


def find_tool(name: str) -> str | None:
    """The path of a program, looked for in the system's folders too: an ordinary user's PATH leaves them out."""
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":" + _SYSTEM_FOLDERS)


def require_tool(name: str, package: str = "") -> str:
    """The path of the program ``name``; ``package`` is the Debian package that the message tells people to add."""
    path = find_tool(name)
    if path is None:
        advice = f" (Debian package {package})" if package else ""
        missing(f"The program {name!r} is not installed{advice}.")
    return path


def require_packages(*names: str) -> None:
    """What a test imports, or has programs import: "torch", "google.cloud.storage"."""
    for name in names:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # what it would be in
            found = None
        if found is None:
            missing(f"The Python package {name} is not installed.")


def require_root() -> None:
    """Namespaces, mounts and bridges need the superuser."""
    if os.geteuid() != 0:
        missing("This test makes network namespaces, which needs root.")

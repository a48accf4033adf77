"""What all commands of ``metaflow-gang`` share: its name, its version, and how it says that it cannot answer."""

from __future__ import annotations

import sys
from importlib import metadata

NAME = "metaflow-gang"

UNKNOWN = 2
"""The exit code where the question cannot be answered: a wrong word, or no such run. argparse has the same."""


def refuse(sentence: str) -> int:
    """Say why the question cannot be answered; returns the exit code."""
    print(f"{NAME}: {sentence}", file=sys.stderr)
    return UNKNOWN


def version() -> str:
    """The version of this package."""
    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:  # the code came without pip
        return "of unknown version"

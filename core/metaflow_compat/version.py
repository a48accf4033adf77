"""Which Metaflow there is: whether it is new enough, and that ``spin`` takes the steps of gangs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata

OLDEST = (2, 16)
"""The first version with what the decorators need of it."""

NEWEST_TESTED = "2.19.39"
"""The newest version that the tests have run on, as tests/constraints.txt says."""

DISTRIBUTIONS = ("ob-metaflow", "metaflow")
"""What installs a Metaflow: Outerbounds' build, and Metaflow's own."""


def installed() -> tuple[str, str]:
    """The name of the distribution that has installed Metaflow, and its version; where pip did not install it, as in a
    task that has got it with the flow's code, ("metaflow", "(of unknown version)").
    """
    for name in DISTRIBUTIONS:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "metaflow", "(of unknown version)"


def too_old() -> str:
    """A sentence for the user of a Metaflow that is older than :data:`OLDEST`; "" for any other.

    Nothing is looked at where Metaflow was not installed by pip, as in a task that has got it with the flow's code.
    """
    name, version = installed()
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return (
            f"metaflow-gang needs Metaflow {oldest} or newer, and {name} {version} is installed, so that there "
            f"is no @gang, @torchrun and so on: pip install --upgrade {name}."
        )
    return ""


def allow_to_spin(decorators: Iterable[str]) -> None:
    """Have ``spin``, which runs one task of a step alone, run steps with these decorators with what they do."""
    from metaflow import metaflow_config

    # An older Metaflow has no spin, and a user's own setting may be no list.
    allowed = getattr(metaflow_config, "SPIN_ALLOWED_DECORATORS", None)
    if isinstance(allowed, list):
        allowed += [name for name in decorators if name not in allowed]

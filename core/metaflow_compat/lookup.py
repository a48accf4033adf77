"""Finding a private part of Metaflow, or a sentence for the user where this Metaflow has none."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..exceptions import MetaflowChanged
from .version import NEWEST_TESTED, OLDEST, installed


def imported(module: str, name: str, purpose: str) -> Any:
    """``from module import name``.

    Parameters
    ----------
    module, name : str
        Of Metaflow.
    purpose : str
        What it is needed for: what follows "to".

    Raises
    ------
    MetaflowChanged
        There is no such module, or no such name in it. What a module raises for another reason is passed on.
    """
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise changed(module, purpose) from None
    return member(found, name, module, purpose)


def member(owner: Any, name: str, of: str, purpose: str) -> Any:
    """``owner.name``, where ``of`` says what the owner is. Raises MetaflowChanged where there is none."""
    try:
        return getattr(owner, name)
    except AttributeError:
        raise changed(f"{of}.{name}", purpose) from None


def require(owner: Any, name: str, of: str, purpose: str) -> None:
    """As :func:`member`, for what is about to be replaced: nothing would ever call it where it is not there."""
    member(owner, name, of, purpose)


def changed(part: str, purpose: str) -> MetaflowChanged:
    """The exception for the user of a Metaflow without ``part``, which is needed to ``purpose``."""
    distribution, version = installed()
    oldest = ".".join(map(str, OLDEST))
    return MetaflowChanged(
        f"metaflow-gang uses {part} of Metaflow to {purpose}, and {distribution} {version} has no such part. Install a "
        f"newer metaflow-gang, or a Metaflow that this one was tested with: {oldest} to {NEWEST_TESTED} "
        f"(pip install '{distribution}>={oldest},<={NEWEST_TESTED}')."
    )

"""Metaflow's cards: one that a decorator adds to a step, and one that is made while the step runs."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

from metaflow.decorators import StepDecorator

from .datastores import open_flow_datastore
from .lookup import imported, member, require

_ADD = "add cards to a step"
_FOLLOW = "show a card while its step runs"
_KEEP = "store the card of a gang"


def card_class() -> Any:
    """The class of ``@card``."""
    return imported("metaflow.plugins.cards.card_decorator", "CardDecorator", _ADD)


def card_type_base() -> Any:
    """The class of card types. Not that of ``metaflow.cards``, which is loaded after the card types."""
    return imported("metaflow.plugins.cards.card_modules.card", "MetaflowCard", "show the card of a gang")


def is_card(decorator: Any) -> bool:
    """Whether a step's decorator is a card."""
    return isinstance(decorator, card_class())


def add_card(attributes: dict[str, Any], inserted_by: str) -> Any:
    """A card as if it were written on the step, but not named on the task's command line: the decorator
    ``inserted_by``, which is there again, adds it again.
    """
    card = card_class()(attributes=attributes, inserted_by=[inserted_by])
    member(card, "external_init", "@card", _ADD)()
    return card


def count_cards(step: str, decorators: Sequence[Any]) -> None:
    """Tell Metaflow how many cards a step has now; one that was asked before has counted without the added ones."""
    count = member(card_class(), "_set_card_counts_per_step", "@card", _ADD)
    count(step, sum(is_card(decorator) for decorator in decorators))


class TakenOver(StepDecorator):  # type: ignore[misc]
    """Stands on the step in place of an ``@card`` whose page somebody else stores: Metaflow makes no card for it."""

    name = "card"
    allow_multiple = True

    def __init__(self, card: Any) -> None:
        self.defaults = card.defaults
        super().__init__(card.attributes, card.statically_defined, card.inserted_by)


def take_over(step: str, decorators: list[Any], card_type: str = "gang") -> list[str | None]:
    """Take the cards of a type over that users have written on a step. Returns their ids, None for one without.

    They stay in the list, in their places: Metaflow goes through it meanwhile, and tells the tasks of those that came
    from the command line.
    """
    ids = []
    for index, decorator in enumerate(decorators):
        if is_card(decorator) and decorator.attributes["type"] == card_type:
            decorators[index] = TakenOver(decorator)
            ids.append(decorator.attributes["id"])
    if ids:
        count_cards(step, decorators)
    return ids


def identity(card: Any) -> str:
    """By what Metaflow knows the card of the running task."""
    return str(member(card, "_card_uuid", "@card", _FOLLOW))


def make(manager: Any, mode: str) -> None:
    """Start a process that makes a card.

    Parameters
    ----------
    manager : CardComponentManager
        ``current.card[ID]``.
    mode : str
        "render_runtime": all of it; "refresh": the data of live viewers.
    """
    member(manager, "_card_proc", "current.card", _FOLLOW)(mode)


def process_of(identity: str) -> subprocess.Popen[bytes] | None:
    """The process that makes a card now, or has made it last; None where there was none yet."""
    owner = imported("metaflow.plugins.cards.card_creator", "CardProcessManager", _FOLLOW)
    process: subprocess.Popen[bytes] | None
    process, *_ = member(owner, "_get_card_process", "CardProcessManager", _FOLLOW)(identity)
    return process


def set_maximum(bar: Any, most: float) -> None:
    """Change the end of a ``ProgressBar``, which is given as it is made and which ``update()`` cannot change."""
    require(bar, "_max", "ProgressBar", _FOLLOW)
    bar._max = most


def card_root(kind: str) -> str | None:
    """The folder, or the address, in which Metaflow keeps cards beside a flow's datastore of this kind.

    Its configuration may name one. Otherwise cards of a local datastore are below the working folder, and those of any
    other are in the datastore: then it is None.
    """
    store = imported("metaflow.plugins.cards.card_datastore", "CardDatastore", _KEEP)
    root: str | None = member(store, "get_storage_root", "CardDatastore", _KEEP)(kind)
    return root


def card_store(flow_name: str, kind: str, flow_root: str, pathspec: str, root: str | None = None) -> Any:
    """Where the cards of one task are kept; ``save_card`` and ``save_data`` write them.

    Parameters
    ----------
    kind : str
        That of the flow's datastore: "local", "s3", "azure" or "gs".
    flow_root : str
        Where the flow's datastore is; Metaflow keeps cards there if its configuration names no place for them.
    pathspec : str
        "Flow/run/step/task".
    root : str, optional
        What :func:`card_root` gave, where the working folder may be another one by now.
    """
    store = imported("metaflow.plugins.cards.card_datastore", "CardDatastore", _KEEP)
    require(store, "save_card", "CardDatastore", _KEEP)
    require(store, "save_data", "CardDatastore", _KEEP)
    where = root or card_root(kind) or flow_root
    return store(open_flow_datastore(flow_name, kind, where), pathspec=pathspec)

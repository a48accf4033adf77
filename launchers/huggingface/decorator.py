"""``@huggingface_card``: two cards of a step that follow the Hugging Face training in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ClassVar

from metaflow import current
from metaflow.decorators import StepDecorator

from ...core.metaflow_compat import cards
from .card import MetricsCard, VariablesCard
from .card_file import FILE_VARIABLE, CardFile
from .live import Follower, LiveCard

_CONTENTS = (VariablesCard, MetricsCard)


class HuggingFaceCardDecorator(StepDecorator):  # type: ignore[misc]
    """
    Gives the step two cards that follow the training of a Hugging Face Trainer while it runs: its arguments, and its
    metrics as curves. The Trainer needs `MetaflowHuggingFaceCardCallback` among its callbacks. Works with every
    launcher, and in a step without one.
    """

    name = "huggingface_card"
    defaults: ClassVar[dict[str, Any]] = {}

    _cards: dict[str, Any]
    _follower: Follower | None = None

    def step_init(
        self, flow: Any, graph: Any, step: str, decos: list[Any], environment: Any, flow_datastore: Any, logger: Any
    ) -> None:
        self._cards = {deco.attributes["id"]: deco for deco in decos if cards.is_card(deco)}
        for content in _CONTENTS:
            if content.card_id in self._cards:
                continue  # the user's own; what is shown in it is ours
            attributes = {"type": "blank", "id": content.card_id, "refresh_interval": content.refresh_interval}
            card = cards.add_card(attributes, inserted_by=self.name)
            self._cards[content.card_id] = card
            # Metaflow goes on to these in the loop that has called us.
            decos.append(card)
        cards.count_cards(step, decos)

    def task_decorate(
        self,
        step_func: Callable[..., Any],
        flow: Any,
        graph: Any,
        retry_count: int,
        max_user_code_retries: int,
        ubf_context: str | None,
    ) -> Callable[..., Any]:
        def body(*args: Any) -> Any:
            with ExitStack() as stack:
                self._begin(stack)
                return step_func(*args)

        return body

    def task_exception(
        self, exception: Exception, step_name: str, flow: Any, graph: Any, retry_count: int, max_user_code_retries: int
    ) -> bool | None:
        if self._follower is not None:
            self._follower.show_last()
        return None

    def _begin(self, stack: ExitStack) -> None:
        try:
            file = stack.enter_context(CardFile(os.environ))
            stack.callback(_set, os.environ.get(FILE_VARIABLE))
            _set(file.path)
            shown = [
                LiveCard(
                    current.card[content.card_id],
                    cards.identity(self._cards[content.card_id]),
                    content(f"{current.pathspec}, attempt {current.retry_count}"),
                )
                for content in _CONTENTS
            ]
            self._follower = Follower(file, shown)
            self._follower.start()
            stack.callback(self._follower.stop)
        except Exception as error:  # whatever it is, the training is worth more than its cards
            print(f"There are no cards of the training: {type(error).__name__}: {error}", file=sys.stderr)


def _set(path: str | None) -> None:
    if path is None:
        os.environ.pop(FILE_VARIABLE, None)
    else:
        os.environ[FILE_VARIABLE] = path

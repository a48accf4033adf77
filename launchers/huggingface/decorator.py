"""``@huggingface_card``: two cards of a step that follow the Hugging Face training in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ClassVar

from metaflow import current
from metaflow.decorators import StepDecorator
from metaflow.plugins.cards.card_decorator import CardDecorator

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
        self._cards = {deco.attributes["id"]: deco for deco in decos if isinstance(deco, CardDecorator)}
        for content in _CONTENTS:
            if content.card_id in self._cards:
                continue  # the user's own; what is shown in it is ours
            card = CardDecorator(
                attributes={
                    "type": "blank",
                    "id": content.card_id,
                    "refresh_interval": content.refresh_interval,
                },
                # So that Metaflow does not add it to the task's command line: the task's own step_init adds it again.
                inserted_by=[self.name],
            )
            card.external_init()
            self._cards[content.card_id] = card
            # Metaflow goes on to these in the loop that has called us.
            decos.append(card)
        # A @card below us has counted before there were ours.
        CardDecorator._set_card_counts_per_step(step, sum(isinstance(deco, CardDecorator) for deco in decos))

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
            cards = [
                LiveCard(
                    current.card[content.card_id],
                    self._cards[content.card_id]._card_uuid,
                    content(f"{current.pathspec}, attempt {current.retry_count}"),
                )
                for content in _CONTENTS
            ]
            self._follower = Follower(file, cards)
            self._follower.start()
            stack.callback(self._follower.stop)
        except Exception as error:  # whatever it is, the training is worth more than its cards
            print(f"There are no cards of the training: {type(error).__name__}: {error}", file=sys.stderr)


def _set(path: str | None) -> None:
    if path is None:
        os.environ.pop(FILE_VARIABLE, None)
    else:
        os.environ[FILE_VARIABLE] = path

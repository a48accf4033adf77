"""The card type of ``@card(type="gang")``, for steps without a gang: there the card has a sentence.

In a step with a gang the gang's decorator takes the card over (:mod:`..metaflow_compat.cards`), and the page is the one
that each step of a gang has.
"""

from __future__ import annotations

import html
from typing import Any

from ..metaflow_compat.cards import card_type_base
from .writer import CARD_TYPE

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>:root {{ color-scheme: light dark }} body {{ font: 15px/1.5 system-ui, sans-serif; margin: 32px }}</style></head>
<body><h1>No gang</h1><p>{text}</p></body></html>
"""


class GangCard(card_type_base()):  # type: ignore[misc]
    """The page of a task that is not of a gang."""

    type = CARD_TYPE

    def render(self, task: Any) -> str:
        """A page that says why there is nothing to see."""
        step = task.pathspec.split("/")[-2]
        text = (
            f"The step {step} has no gang, which this card shows. Add @gang, @torchrun or another launcher of "
            'metaflow-gang to the step, or remove @card(type="gang").'
        )
        return _PAGE.format(title=html.escape(task.pathspec), text=html.escape(text))

"""How much a node may send of where its processes stand, and when a card shows a stall."""

CARD_S = 300.0
"""Seconds without progress after which the card shows it where ``stall_timeout`` is off."""

MOST = 100
"""Processes of one node."""

TEXT = 2000
"""Characters of the stack of one of them."""

NAME = 900
"""Characters of its place, and of its innermost frame."""

"""What Metaflow finds here: the card type of ``@card(type="gang")``."""

from ...core.card.card_type import GangCard

CARDS = [GangCard]

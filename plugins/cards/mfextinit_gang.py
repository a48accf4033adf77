"""What Metaflow finds here: the card type of ``@card(type="gang")``."""

from ...core.exceptions import MetaflowChanged

try:
    from ...core.card.card_type import GangCard
except MetaflowChanged:
    # This Metaflow keeps its card types elsewhere. It loads all of them with its decorators, so that an exception here
    # would take steps without a card from the user, too.
    CARDS = []
else:
    CARDS = [GangCard]

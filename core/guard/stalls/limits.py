"""How much a node may send of where its processes stand."""

MOST = 100
"""Processes of one node."""

TEXT = 2000
"""Characters of the stack of one of them."""

NAME = 900
"""Characters of its place, and of its innermost frame."""

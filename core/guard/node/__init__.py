"""One node: the parts of its guard, the state of the node, and how it stops."""

"""One node: what its task asks for, what the hub says, and how the node stops."""

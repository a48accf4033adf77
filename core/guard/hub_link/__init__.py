"""A node's link to the hub, and its connections to the neighbours, which only watch the network."""

"""How the nodes of a gang find each other before they are connected, and who reports a node that never comes."""

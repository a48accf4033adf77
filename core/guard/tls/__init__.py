"""Encrypted connections between the nodes of one gang, for files and for commands."""

"""A file from one node to all others, along a chain."""

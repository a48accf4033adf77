"""Nodes that wait to take the places of others: the world of a launcher's ranks, as nodes are lost and replaced."""

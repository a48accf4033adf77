"""Dry runs: what a call would start is shown, node by node, and nothing is started."""

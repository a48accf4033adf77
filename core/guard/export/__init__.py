"""Metrics for other programs: what a node's samples and phases are called there, and how they get there."""

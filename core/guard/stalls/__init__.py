"""Notices a gang that makes no progress, and finds out where each of its ranks stands."""

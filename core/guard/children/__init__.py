"""Processes that the guard starts: how they start, what they print, how they end."""

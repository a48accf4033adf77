"""The guard: the process beside each node's task that keeps the gang together.

It runs as ``python -I -S`` with the standard library alone, so nothing in this package may import
Metaflow or the rest of ``core``. The task talks to it through ``core/guard_client/link.py``.
"""

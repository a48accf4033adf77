"""The exception of ``@jax``."""

from __future__ import annotations

from ...core.exceptions import ToolMissing


class JaxMissing(ToolMissing):
    """There is no JAX where the step runs."""

    headline = "@jax: JAX is missing"

"""What each rank runs, as its wrapper is told."""

from __future__ import annotations

from collections.abc import Mapping

from ...core.entrypoint import Entrypoint
from ...core.functions import RANK_CHILD


def target(
    what: Entrypoint, options: Mapping[str, str | None], environ: Mapping[str, str], python: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Program and arguments; DeepSpeed's ``--local_rank`` goes between the two."""
    python = environ.get("PYTHON_EXEC", python)
    if what.call is not None:
        return (python, "-u", RANK_CHILD), what.arguments
    if "no_python" in options:
        return (what.target,), what.arguments
    if "module" in options:
        return (python, "-u", "-m", what.target), what.arguments
    return (python, "-u", RANK_CHILD, "--script", what.target), what.arguments

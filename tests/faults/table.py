"""The matrix: what happens, to whom, when, under which launchers. Plain data; :mod:`oracle` knows what has to follow."""

from __future__ import annotations

from cells import Row

ALL = ("gang", "torchrun", "agent", "deepspeed", "mpi", "ray", "tensorflow", "jax")
RANKED = ("torchrun", "agent", "deepspeed", "mpi")
BODIES = ("tensorflow", "jax")


def rows(whats: str, whos: str, whens: str, launchers: tuple[str, ...] = ("gang",), **more: object) -> tuple[Row, ...]:
    """All combinations of words that stand between commas."""
    return tuple(
        Row(what.strip(), who.strip(), when.strip(), launchers, **more)
        for when in whens.split(",")
        for who in whos.split(",")
        for what in whats.split(",")
    )


ROWS: tuple[Row, ...] = (
    *rows("SIGKILL, SIGTERM, os._exit(3), raise, sys.exit(text), return early", "task 0, task 1", "collective"),
    *rows("SIGKILL", "guard 0, guard 1, run", "body, ranks"),
    *rows("SIGKILL, os._exit(3), raise", "rank 1", "ranks", ("gang", "mpi", "torchrun")),
)

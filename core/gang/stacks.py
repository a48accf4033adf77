"""What ``current.gang.stacks()`` gives: where the ranks of a gang stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StackGroup:
    """Ranks and bodies that stand at the same place.

    Parameters
    ----------
    place : str
        "all_reduce at train.py:31": the line of the user's program, and what it has called there.
    inner : str
        The innermost frame, where that is not the user's own; else "".
    stack : str
        The innermost frames of one member, one in a line.
    ranks : tuple of int
    nodes : tuple of int
        Nodes on which the members run.
    others : tuple of str
        Members without a number: "the body of node 0".
    """

    place: str
    inner: str
    stack: str
    ranks: tuple[int, ...]
    nodes: tuple[int, ...]
    others: tuple[str, ...]


class Stacks(Sequence[StackGroup]):
    """The groups, the smallest first. As text it is what the log shows at a stall."""

    def __init__(self, groups: list[dict[str, Any]], text: str) -> None:
        self._groups = tuple(
            StackGroup(
                group["place"],
                group["inner"],
                group["stack"],
                tuple(group["ranks"]),
                tuple(group["nodes"]),
                tuple(group["others"]),
            )
            for group in groups
        )
        self.text = text

    @classmethod
    def of(cls, reply: Mapping[str, Any]) -> Stacks:
        """That of a guard's reply."""
        return cls(reply["groups"], reply["text"])

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: Any) -> Any:
        return self._groups[index]

    def __iter__(self) -> Iterator[StackGroup]:
        return iter(self._groups)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Stacks({list(self._groups)})"

"""A rank fails while others write on and on: rank, end and words of the cause are told, the same on every node."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.frameworks.chatty import CALLS, round_of
from support.frameworks.mpi import MPICH, OPEN_MPI_5, path_with

pytestmark = pytest.mark.slow

END_S = 120.0
"""For one run, on a machine that has other things to do."""


@pytest.mark.parametrize("kind", CALLS)
def test_a_rank_that_fails_among_chatty_ones_is_told_with_its_own_words(kind: str, tmp_path: Path) -> None:
    assert round_of(kind, tmp_path, END_S) == []


@pytest.mark.big
@pytest.mark.parametrize("mpi", [OPEN_MPI_5, MPICH])
@pytest.mark.parametrize("kind", ["mpi4py", "mpi program"])
def test_the_same_under_every_mpirun(kind: str, mpi: str, tmp_path: Path) -> None:
    assert round_of(kind, tmp_path, END_S, {"PATH": path_with(mpi)}) == []

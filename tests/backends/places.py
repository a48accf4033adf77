"""The backends, for tests that each of them has to pass."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.requirements import require_packages

_KINDS = {"kubernetes": "KubernetesPlace", "batch": "BatchPlace", "argo": "ArgoPlace", "slurm": "SlurmPlace"}

Places = Callable[..., Any]
"""Called with the number of machines, and options that its backend has."""


def everywhere(*ordinary: str, but: str = "") -> pytest.MarkDecorator:
    """Of a test that takes a ``place``: it is run on every backend (``but`` one), and big but for those named.

    On Slurm, which needs no services and no images, it is slow.
    """
    marks = {kind: () if kind in ordinary else pytest.mark.big for kind in _KINDS} | {"slurm": pytest.mark.slow}
    kinds = [pytest.param(kind, marks=marks[kind]) for kind in _KINDS if kind != but]
    return pytest.mark.parametrize("place", kinds, indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Places]:
    """What makes a workplace with the backend that :func:`everywhere` gives.

    What all have: ``start`` a flow, wait for a ``node`` to say something, ``lose`` its machine, ``hold_back`` a node,
    and read its ``task_logs``.
    """
    kind = getattr(importlib.import_module(f".{request.param}.place", __package__), _KINDS[request.param])
    require_packages(*kind.packages)
    # Made for the whole session, for those backends that start containers.
    image = request.getfixturevalue("image") if kind.has_images else None
    with contextlib.ExitStack() as stack:
        yield lambda machines, **options: kind(stack, tmp_path, image, machines, **options)

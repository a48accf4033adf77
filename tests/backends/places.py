"""The backends, for tests that each of them has to pass."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.requirements import require_packages

from .image import Image

_KINDS = {"kubernetes": "KubernetesPlace", "batch": "BatchPlace", "argo": "ArgoPlace"}

Places = Callable[..., Any]
"""Called with the number of machines, and options that its backend has."""


def everywhere(*ordinary: str) -> pytest.MarkDecorator:
    """Of a test that takes a ``place``: it is run on every backend, and big but for those that are named."""
    kinds = [pytest.param(kind, marks=() if kind in ordinary else pytest.mark.big) for kind in _KINDS]
    return pytest.mark.parametrize("place", kinds, indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, image: Image) -> Iterator[Places]:
    """What makes a workplace with the backend that :func:`everywhere` gives.

    What all have: ``start`` a flow, wait for a ``node`` to say something, ``lose`` its machine, ``hold_back`` a node,
    and read its ``task_logs``.
    """
    kind = getattr(importlib.import_module(f".{request.param}.place", __package__), _KINDS[request.param])
    require_packages(*kind.packages)
    with contextlib.ExitStack() as stack:
        yield lambda machines, **options: kind(stack, tmp_path, image, machines, **options)

"""What ``make release`` makes: the same bytes from every checkout, with a command that answers without Metaflow."""

from __future__ import annotations

import importlib.util
import os
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

from checkouts import copy_of_checkout
from support.paths import ROOT

EPOCH = 1_700_000_000


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / "tests" / "tools" / "release.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_builds_are_the_same_bytes_and_the_wheel_answers(tmp_path: Path) -> None:
    release = script()
    made = []
    for number, name in enumerate(("first", "a longer name of the second")):
        source = tmp_path / name
        source.mkdir()
        copy_of_checkout(source)
        for path in source.rglob("*.py"):
            os.utime(path, (number * 1e6, number * 1e6))
            path.chmod(0o600 if number else 0o664)
        made.append(release.build(source, EPOCH, tmp_path / f"dist-{number}"))
    for first, second in zip(*made, strict=True):
        assert first.name == second.name
        assert first.read_bytes() == second.read_bytes(), first.name
    wheel, sdist = made[0]
    with zipfile.ZipFile(wheel) as archive:
        assert {one.date_time for one in archive.infolist()} == {(2023, 11, 14, 22, 13, 20)}
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
        assert {(one.mtime, one.uid, one.uname) for one in members} == {(EPOCH, 0, "")}
        assert any(one.name.endswith("/core/gang/gang.py") for one in members)
    assert "usage: metaflow-gang doctor" in release.try_out(wheel)

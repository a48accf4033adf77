"""Hostfiles as each reader wants them, and how private files get to where they are read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

import metaflow  # noqa: F401 - before any of its extensions
import pytest

from metaflow_extensions.gang.core.exceptions import BadAttribute
from metaflow_extensions.gang.core.remote_shell.hostfile import hostfile, write_private

ALL: tuple[Literal["openmpi", "mpich", "deepspeed"], ...] = ("openmpi", "mpich", "deepspeed")


def test_each_reader_gets_its_own_form_in_the_order_given() -> None:
    entries = [("10.0.0.8", 2), ("host-7.example", 16)]
    assert hostfile(entries, "openmpi") == "10.0.0.8 slots=2\nhost-7.example slots=16\n"
    assert hostfile(entries, "deepspeed") == "10.0.0.8 slots=2\nhost-7.example slots=16\n"
    assert hostfile(entries, "mpich") == "10.0.0.8:2\nhost-7.example:16\n"
    assert hostfile([], "mpich") == ""


@pytest.mark.parametrize("style", ALL)
def test_nodes_of_one_address_share_a_line(style: Literal["openmpi", "mpich", "deepspeed"]) -> None:
    merged = hostfile([("127.0.0.1", 2), ("10.0.0.1", 1), ("127.0.0.1", 3)], style)
    assert merged == hostfile([("127.0.0.1", 5), ("10.0.0.1", 1)], style)
    assert merged.count("127.0.0.1") == 1


def test_an_ipv6_address_is_for_deepspeed_only() -> None:
    assert hostfile([("fd00::7", 2)], "deepspeed") == "fd00::7 slots=2\n"
    for style in ("openmpi", "mpich"):
        with pytest.raises(BadAttribute, match=r"cannot hold the IPv6 address fd00::7\. Give the node"):
            hostfile([("fd00::7", 2)], style)  # type: ignore[arg-type]


@pytest.mark.parametrize("style", ALL)
@pytest.mark.parametrize("address", ["", "a b", "a\n10.0.0.9", "#a", "[::1]", "a\tslots=4", "slots=4"])
def test_what_would_be_read_as_something_else_is_refused(
    style: Literal["openmpi", "mpich", "deepspeed"], address: str
) -> None:
    with pytest.raises(BadAttribute, match="is no address or name"):
        hostfile([("10.0.0.1", 1), (address, 1)], style)


def test_a_node_without_slots_is_refused() -> None:
    with pytest.raises(BadAttribute, match=r"one slot at least, and '10\.0\.0\.1' has 0"):
        hostfile([("10.0.0.1", 0)], "openmpi")


def test_a_private_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    for number, umask in enumerate((0o000, 0o022, 0o377)):
        path = tmp_path / str(number)
        before = os.umask(umask)
        try:
            write_private(str(path), "name \udcff\n")
            write_private(f"{path}.sh", b"#!/bin/sh\n", 0o700)
        finally:
            os.umask(before)
        assert path.read_bytes() == b"name \xff\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(os.stat(f"{path}.sh").st_mode) == 0o700
    assert len(list(tmp_path.iterdir())) == 6, "nothing of the way there is left"


def test_a_private_file_replaces_what_is_there_and_writes_through_no_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("stays")
    link.symlink_to(target)
    write_private(str(link), "new")
    assert target.read_text() == "stays"
    assert not link.is_symlink() and link.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) != 0o600


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_private(str(path), "\ud800")
    assert path.read_text() == "old"
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(IsADirectoryError):
        write_private(str(folder), "text")
    with pytest.raises(FileNotFoundError):
        write_private(str(tmp_path / "none" / "file"), "text")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]

"""Options as users write them, and the arguments a real process then receives."""

from __future__ import annotations

import enum
import json
import subprocess
import sys
from collections import OrderedDict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import numpy as np
import pytest

from metaflow_extensions.gang.core.calls.arguments import (
    BadArgument,
    alternating_to_argv,
    entrypoint_argv,
    options_to_argv,
)

FLAGS = {"standalone", "no_python", "run_path", "virtual_local_rank", "module", "m"}
"""torchrun's."""

TORTURE = [
    'say "hi"',
    "a'; echo foo",
    "é ☃ 日本",
    "C:\\new\\x",
    "two\nlines\ttab",
    " ",
    "$HOME `id` $(id) *",
    "-x",
    "--a=b",
    "{json: [1]}",
    "caf\udce9",
]


class Colour(str, enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


def received(argv: list[str]) -> list[str]:
    script = "import json, sys; print(json.dumps(sys.argv[1:]))"
    run = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, check=True, timeout=60)
    answer: list[str] = json.loads(run.stdout)
    return answer


@pytest.mark.parametrize(
    "value",
    [True, False, 0, -1, 7, 1e-5, 0.1, float("inf"), [1, "z"], [], {"q": "v"}, {}, [1, [2, None]], (1, 2), 10**30],
)
def test_plain_values_are_spelled_as_the_older_packages_did(value: Any) -> None:
    assert options_to_argv({"key": value}) == ["--key", json.dumps(value).replace('"', "")]


def test_known_spellings() -> None:
    options = {"a": True, "b": 1e-5, "c": [1, "z"], "d": {"q": "v"}, "e": 0, "f": None, "g": ""}
    expected = "--a|true|--b|1e-05|--c|[1, z]|--d|{q: v}|--e|0|--f|--g"
    assert options_to_argv(options) == expected.split("|")


def test_a_key_keeps_its_own_dashes_and_underscores() -> None:
    options = OrderedDict([("learning_rate", 1), ("-v", None), ("--dry-run", ""), ("a-b", 2)])
    assert options_to_argv(options) == ["--learning_rate", "1", "-v", "--dry-run", "--a-b", "2"]


def test_strings_reach_the_process_verbatim() -> None:
    assert received(options_to_argv({f"k{i}": text for i, text in enumerate(TORTURE)}))[1::2] == TORTURE
    assert received(entrypoint_argv([*TORTURE, ""])) == [*TORTURE, ""]


def test_paths_enums_and_numpy_scalars() -> None:
    options = {
        "path": Path("/a b/é"),
        "colour": Colour.RED,
        "level": Level.HIGH,
        "int": np.int64(3),
        "float": np.float32(0.5),
        "flag": np.bool_(True),
        "text": np.str_("x y"),
        "list": [np.int32(1), Path("p")],
    }
    assert options_to_argv(options)[1::2] == ["/a b/é", "red", "3", "3", "0.5", "true", "x y", "[1, p]"]


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"caf\xe9"


def test_a_path_of_bytes_arrives_as_those_bytes() -> None:
    assert options_to_argv({"p": BytesPath()}) == ["--p", "caf\udce9"]


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", datetime(2020, 1, 1), np.array([1, 2]), lambda: 0, 1j])
def test_what_no_command_line_can_carry_is_named(value: Any) -> None:
    with pytest.raises(BadArgument, match=r"option 'thing' .*type .*Use a string, a path, a number"):
        options_to_argv({"thing": value})


def test_a_value_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(BadArgument, match="thing"):
        options_to_argv({"thing": value})


@pytest.mark.parametrize("text", ["a\0b", "lone \ud800"])
def test_a_character_that_the_system_refuses(text: str) -> None:
    with pytest.raises(BadArgument, match="holds a character"):
        options_to_argv({"thing": text})
    with pytest.raises(BadArgument, match="holds a character"):
        options_to_argv({text: 1})
    with pytest.raises(BadArgument, match="Item 1 "):
        entrypoint_argv(["a", text])


@pytest.mark.parametrize("key", [1, None, "", ("a",)])
def test_a_name_that_is_none(key: Any) -> None:
    with pytest.raises(BadArgument, match="name of an option"):
        options_to_argv({key: 1})


def test_lists_go_item_by_item_and_none_is_nothing() -> None:
    assert entrypoint_argv(["train", Path("d.csv"), 3, 1e-5, True, np.int64(4)]) == (
        ["train", "d.csv", "3", "1e-05", "true", "4"]
    )
    assert entrypoint_argv(("a",)) == options_to_argv(["a"]) == ["a"]
    assert entrypoint_argv(None) == options_to_argv(None) == alternating_to_argv(None, FLAGS) == []
    assert entrypoint_argv({"a": 1}) == ["--a", "1"]


@pytest.mark.parametrize("args", ["--epochs 3", b"x", 3, {"a"}, iter(["a"])])
def test_what_is_neither_dict_nor_list(args: Any) -> None:
    for convert in (entrypoint_argv, options_to_argv, partial(alternating_to_argv, flags=FLAGS)):
        with pytest.raises(BadArgument, match="a dict such as"):
            convert(args)


@pytest.mark.parametrize("item", [None, ["nested"], ("t",), {"k": 1}, object()])
def test_an_item_that_is_no_argument(item: Any) -> None:
    with pytest.raises(BadArgument, match="Item 2 of the arguments"):
        entrypoint_argv(["a", "b", item])


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["nproc_per_node", 2, "max_restarts", 1], "--nproc_per_node 2 --max_restarts 1"),
        (["--nproc_per_node", "2", "--tee", 3], "--nproc_per_node 2 --tee 3"),
        (["--nproc_per_node=2", "max_restarts", 1], "--nproc_per_node=2 --max_restarts 1"),
        (["nproc_per_node=2"], "--nproc_per_node=2"),
        (["--standalone", "--nnodes", 1], "--standalone --nnodes 1"),
        (["standalone", "nnodes", 1], "--standalone --nnodes 1"),
        (["standalone", None, "nnodes", 1], "--standalone --nnodes 1"),
        (["no_python", "", "nnodes", 1], "--no_python --nnodes 1"),
        (["--standalone", True, "tee", 3], "--standalone --tee 3"),
        (["-m", "nnodes", 1], "-m --nnodes 1"),
        (["--a", "--b", "c"], "--a --b c"),
        (["offset", "-1", "x", -2.5], "--offset -1 --x -2.5"),
        (["log_dir", Path("logs"), "role", "a"], "--log_dir logs --role a"),
        ([], ""),
    ],
)
def test_torchrun_lists(items: list[Any], expected: str) -> None:
    assert alternating_to_argv(items, FLAGS) == expected.split()


def test_torchrun_values_are_spelled_as_in_dicts() -> None:
    items = ["a", [1, "z"], "b", True, "c", 'say "hi"', "d", {"q": 1}]
    assert alternating_to_argv(items, FLAGS)[1::2] == ["[1, z]", "true", 'say "hi"', "{q: 1}"]


@pytest.mark.parametrize("items", [[2], ["a", 1, 2], [None], ["a=1", 2], [Path("x")], ["standalone", 5]])
def test_a_torchrun_value_without_a_name(items: list[Any]) -> None:
    with pytest.raises(BadArgument, match="name of an option is expected"):
        alternating_to_argv(items, FLAGS)

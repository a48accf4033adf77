"""A tool's options, read by a table: one reader for lists that alternate and for words of a command line."""

from __future__ import annotations

from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest

from metaflow_extensions.gang.core.calls.option_table import OptionTable, to_argv
from metaflow_extensions.gang.core.exceptions import BadAttribute
from metaflow_extensions.gang.core.gang.arguments import check_alike

FLAGS, NAMES = frozenset({"quiet"}), {"q": "quiet", "n": "num_nodes"}
WORDS = OptionTable("tool_args", FLAGS, NAMES, {"host": "the gang knows it"})
PAIRS = OptionTable("tool_args", FLAGS, NAMES, {"host": "the gang knows it"}, alternating=True)


@pytest.mark.parametrize("table", [WORDS, PAIRS])
@pytest.mark.parametrize(
    "given",
    [
        {"num-nodes": 2, "q": True},
        {"n": 2, "quiet": None},
        {"num_nodes": 2, "quiet": True, "-q": None},
        ["--num-nodes=2", "-q"],
        ["-n", "1", "--num_nodes", "2", "--quiet"],
    ],
)
def test_options_have_one_name_however_they_are_written(table: OptionTable, given: Any) -> None:
    assert table.read(given) == {"num_nodes": "2", "quiet": None}
    assert table.read(None) == {}


@pytest.mark.parametrize(
    ("table", "given", "message"),
    [
        (WORDS, {"host": "a"}, "tool_args has host, but the gang knows it. Leave it out."),
        (PAIRS, ["host", "a"], "tool_args has host, but the gang knows it. Leave it out."),
        (WORDS, ["train.py"], "Options of the script go into entrypoint_args."),
        (WORDS, ["--quiet=1"], "tool_args: quiet takes no value."),
        (PAIRS, {"quiet": 1}, "tool_args: quiet takes no value; give it as {'quiet': None}."),
        (WORDS, ["--num_nodes"], "tool_args: num_nodes needs a value."),
        (WORDS, {"num_nodes": object()}, "tool_args: The option 'num_nodes' has a value of type object"),
    ],
)
def test_what_cannot_be_meant_is_refused(table: OptionTable, given: Any, message: str) -> None:
    with pytest.raises(BadAttribute) as refused:
        table.read(given)
    assert message in str(refused.value)


def test_lists_differ_in_values_that_are_missing_or_look_like_options() -> None:
    assert PAIRS.read(["num_nodes", "--quiet"]) == {"num_nodes": None, "quiet": None}
    assert WORDS.read(["--num_nodes", "--quiet"]) == {"num_nodes": "--quiet"}
    assert PAIRS.read(["num_nodes", -2]) == WORDS.read(["--num_nodes", -2]) == {"num_nodes": "-2"}


def test_a_tool_gets_its_options_in_the_users_order() -> None:
    values = WORDS.read(["--b", "x y", "-q", "--a", "1"])
    assert to_argv(values, frozenset({"a"})) == ["--b=x y", "--quiet"]


def test_nodes_that_differ_are_named() -> None:
    answers = [{"nproc": 1, "mode": "a"}, {"nproc": 2, "mode": "a"}, {"nproc": 1, "mode": "b"}]
    with pytest.raises(BadAttribute, match="run\\(\\) differently: mode is 'a' on node 0 and 'b' on node 2"):
        check_alike(answers, ["mode"])
    check_alike(answers[:2], ["mode"])

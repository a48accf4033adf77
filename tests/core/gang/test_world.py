"""Which nodes have ranks, and which wait, as nodes are lost: values alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest

from metaflow_extensions.gang.core.exceptions import BadAttribute
from metaflow_extensions.gang.core.gang.collectives import LOST
from metaflow_extensions.gang.core.gang.spares.world import SpareNodes, World
from metaflow_extensions.gang.core.gang.spares.worlds import Worlds
from metaflow_extensions.gang.core.guard.failure_record import PEER, Failure


def wanted(spares: Any = 0, min_nodes: Any = None) -> SpareNodes | None:
    return SpareNodes.of(SimpleNamespace(name="torchrun", attributes={"spares": spares, "min_nodes": min_nodes}))


def test_without_either_attribute_there_is_nothing() -> None:
    assert wanted() is None and wanted("0") is None
    assert wanted("2") == SpareNodes(2) and wanted(0, "3") == SpareNodes(0, 3)


@pytest.mark.parametrize(
    ("spares", "min_nodes", "nodes", "waiting", "least", "replacements"),
    [(1, None, (0, 1, 2), (3,), 3, 1), (2, 1, (0, 1), (2, 3), 1, 3), (0, 3, (0, 1, 2, 3), (), 3, 1)],
)
def test_the_first_world(
    spares: int, min_nodes: int | None, nodes: tuple[int, ...], waiting: tuple[int, ...], least: int, replacements: int
) -> None:
    said = SpareNodes(spares, min_nodes)
    assert said.world("@torchrun", 4) == World(nodes, waiting, least)
    assert said.replacements(4) == replacements


@pytest.mark.parametrize("said", [SpareNodes(4), SpareNodes(7), SpareNodes(2, 3)])
def test_a_world_that_cannot_be_is_refused(said: SpareNodes) -> None:
    with pytest.raises(BadAttribute):
        said.world("@torchrun", 4)


@pytest.mark.parametrize("value", [-1, "many", True, 1.5])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(BadAttribute, match="spares"):
        wanted(value)
    with pytest.raises(BadAttribute, match="min_nodes"):
        wanted(1, value)


def test_spares_take_the_places_of_lost_nodes_in_their_order() -> None:
    world = World((0, 1, 2), (3, 4), 3)
    assert world.without([1]) == World((0, 3, 2), (4,), 3)
    assert world.without([2, 1]) == World((0, 3, 4), (), 3)
    assert world.without([3]) == World((0, 1, 2), (4,), 3), "a lost spare takes nobody's place"
    assert world.without([2, 3]) == World((0, 1, 4), (), 3)
    assert world.without([7]) == world


def test_without_spares_the_world_shrinks_as_far_as_it_may() -> None:
    world = World((0, 1, 2), (), 2)
    smaller = world.without([1])
    assert smaller.nodes == (0, 2) and smaller.is_enough
    assert not smaller.without([2]).is_enough
    assert "1 node is fewer than the 2 that they need" in smaller.without([2]).too_few()


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ([1], "node 3 takes its place"),
        ([1, 2], "nodes 3 and 4 take the places of nodes 1 and 2"),
        ([1, 2, 3], "node 4 takes the place of node 1; the ranks continue on 2 nodes"),
        ([3], ""),
        ([1, 2, 3, 4], "the ranks continue on 1 node"),
    ],
)
def test_what_becomes_of_the_places_is_told(lost: list[int], said: str) -> None:
    world = World((0, 1, 2), (3, 4), 1)
    assert world.without(lost).changes_from(world) == said


def worlds(spares: tuple[int, ...] = (3,)) -> Worlds:
    return Worlds(member(0), World((0, 1, 2), spares, 3))


def member(node: int, told: list[dict[str, Any]] | None = None) -> Any:
    """A node whose guard only keeps what it is told."""
    link = SimpleNamespace(request=lambda op, **fields: told.append({"op": op, **fields}) if told is not None else None)
    return SimpleNamespace(node_index=node, _link=link)


def test_node_0_alone_tells_its_guard_each_world_once() -> None:
    of_node_0: list[dict[str, Any]] = []
    of_node_1: list[dict[str, Any]] = []
    for node, told in ((0, of_node_0), (1, of_node_1)):
        found = Worlds(member(node, told), World((0, 1, 2), (3,), 2))
        found.begin_without({})
        found.lose([{}, {}, {}, {}])
        found.lose([{}, None, {}, {}])
        found.begin_without({2: "its preflight failed"})
    assert of_node_1 == []
    assert [(one["nodes"], one["spares"]) for one in of_node_0 if one["op"] == "world"] == [
        ((0, 1, 2), (3,)),
        ((0, 3, 2), ()),
        ((0, 3, 2), ()),
        ((0, 3), ()),
    ]
    assert [one for one in of_node_0 if one["op"] == "leave-out"] == [
        {"op": "leave-out", "left_out": {2: "its preflight failed"}}
    ]


def test_a_launch_has_failed_where_one_of_its_nodes_could_not_tell() -> None:
    found = worlds()
    assert not found.has_failed([None, None, None, None])
    assert not found.has_failed([None, None, None, LOST]), "a spare has no ranks"
    assert found.has_failed([None, LOST, None, None])
    assert found.has_failed([None, None, {"failures": []}, None])
    found.lose([{}, None, None, {}])
    assert found.now.nodes == (0, 3) and found.has_failed([None, None, None, None]), "there are too few"


def failed(node: int, order: int = 1, rank: int | None = 5) -> Failure:
    return Failure(node, "exit", "rank 5 exited with code 1", 0.0, order=order, rank=rank)


def test_a_node_whose_ranks_failed_first_twice_is_left_out() -> None:
    found = worlds()
    assert found.after({}, failed(1)) == (found.now, {})
    assert found.after({}, failed(2)) == (found.now, {})
    assert found.after({}, failed(1, PEER)) == (found.now, {}), "it only misses another"
    world, left_out = found.after({}, failed(1))
    assert world.nodes == (0, 3, 2) and left_out == {1: "its ranks failed first 2 times"}


def test_neither_node_0_nor_one_that_nobody_can_replace_is_left_out() -> None:
    for found, node in ((worlds(), 0), (worlds(()), 1)):
        for _ in range(3):
            assert found.after({}, failed(node)) == (found.now, {})


def test_a_lost_node_takes_no_spare_from_a_lost_spare() -> None:
    found = worlds((3, 4))
    lost = {node: Failure(node, "lost", "is lost", 0.0) for node in (1, 3)}
    world, left_out = found.after(lost, None)
    assert world.nodes == (0, 4, 2) and not world.spares and not left_out

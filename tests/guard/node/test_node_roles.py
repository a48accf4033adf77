"""What is told of nodes without ranks of their own: spare ones, their new places, and nodes that were left out."""

from __future__ import annotations

from metaflow_extensions.gang.core.guard.node_roles import MOST, WIDTH, NodeRoles, without_ranks

NOW = 1_700_000_000.0


def told(roles: NodeRoles) -> dict[int, tuple[float, str]]:
    return {record["node"]: (record["at"] - NOW, record["text"]) for record in roles.records()}


def test_nothing_is_told_of_a_gang_in_which_every_node_has_its_ranks() -> None:
    roles = NodeRoles()
    roles.world((0, 1, 2), (), NOW)
    assert roles.records() == [] and len(roles) == 0 and without_ranks(roles, NOW) == {}


def test_a_spare_node_takes_the_place_of_a_lost_one_and_is_lost_itself() -> None:
    roles = NodeRoles()
    roles.world((0, 1, 2), (3, 4), NOW)
    assert told(roles) == {3: (0.0, "spare, waits"), 4: (0.0, "spare, waits")}
    roles.leave_out(1, "lost: it was reset.\nmore of it", NOW + 5)
    roles.world((0, 3, 2), (4,), NOW + 6)
    assert told(roles) == {
        1: (5.0, "left out: lost: it was reset"),
        3: (6.0, "spare, took the place of node 1 (node rank 1)"),
        4: (0.0, "spare, waits"),
    }
    assert roles.left_out == {1: "lost: it was reset.\nmore of it"}, "the metadata have all of it"
    roles.leave_out(3, "its ranks failed first 2 times", NOW + 8)
    roles.world((0, 4, 2), (), NOW + 8)
    assert told(roles)[3] == (8.0, "left out: its ranks failed first 2 times")
    assert told(roles)[4] == (8.0, "spare, took the place of node 3 (node rank 1)")
    assert without_ranks(roles, NOW) == {1: {"out": 5.0}, 3: {"waited": 6.0, "out": 8.0}, 4: {"waited": 8.0}}


def test_nodes_that_move_up_are_told() -> None:
    roles = NodeRoles()
    roles.world((0, 1, 2, 3), (4,), NOW)
    for node in (1, 2):
        roles.leave_out(node, "lost: it has died", NOW + 1)
    roles.world((0, 4, 3), (), NOW + 2)
    assert told(roles)[3] == (2.0, "has become node rank 2")
    assert told(roles)[4] == (2.0, "spare, took the place of node 1 (node rank 1)")
    assert without_ranks(roles, NOW)[4] == {"waited": 2.0} and 3 not in without_ranks(roles, NOW)


def test_a_spare_node_that_is_lost_while_it_waits() -> None:
    roles = NodeRoles()
    roles.world((0, 1), (2,), NOW)
    roles.leave_out(2, "lost: it has died", NOW + 3)
    roles.world((0, 1), (), NOW + 3)
    assert told(roles) == {2: (3.0, "left out: lost: it has died")}
    assert without_ranks(roles, NOW) == {2: {"waited": None, "out": 3.0}}


def test_of_many_nodes_the_left_out_ones_are_told_first() -> None:
    roles = NodeRoles()
    roles.world(range(100), range(100, 300), NOW)
    roles.leave_out(250, "x" * 1000, NOW + 1)
    records = roles.records()
    assert (len(records), len(roles)) == (MOST, 200)
    assert records[-1]["node"] == 250 and len(records[-1]["text"]) < WIDTH + 20
    assert {record["state"] for record in records[:-1]} == {"spare"}

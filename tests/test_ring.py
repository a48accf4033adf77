"""A node that cannot reach the next one tells so, unless the next one has only done its work and left."""

from __future__ import annotations

import os
from types import SimpleNamespace

import metaflow  # noqa: F401 - before any import of the extension
import pytest

from metaflow_extensions.gang.core.guard.loop import Loop
from metaflow_extensions.gang.core.guard.ring import LEAVING_S, Ring
from metaflow_extensions.gang.core.guard.session import Identity
from metaflow_extensions.gang.core.guard.verdict import Failure

GANG = Identity("F", "1", "s", "2", 0)


@pytest.mark.parametrize("has_left", [True, False])
def test_a_next_node_that_does_not_take_the_connection(has_left: bool) -> None:
    loop, told = Loop(), list[Failure]()
    one, two = (SimpleNamespace(loop=loop, index=index, fail=told.append) for index in (1, 2))
    ring = Ring(one, GANG, os.urandom(32), "127.0.0.1")  # type: ignore[arg-type]
    # Of another secret, so that the connection fails for good, as it does where a guard ends in a handshake.
    other = Ring(two, GANG, os.urandom(32), "127.0.0.1")  # type: ignore[arg-type]
    roster = [{"address": "127.0.0.1", "ring_port": port} for port in (0, ring.port, other.port)]
    ring.close_the(roster)
    if has_left:
        loop.call_later(LEAVING_S / 2, ring.next_has_left)
    loop.call_later(LEAVING_S + 1.0, loop.stop)
    loop.run()
    ring.close()
    other.close()
    loop.close()
    assert [failure.peer for failure in told] == ([] if has_left else [2])
    assert has_left or "cannot reach node 2" in told[0].text

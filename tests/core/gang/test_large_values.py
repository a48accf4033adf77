"""Large values of collectives: who gets which bytes, by which way, and what is left on disk after delivery."""

from __future__ import annotations

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
from support.flows import FlowRunner

LIMIT_S = 150.0

FLOW = """
import os
from metaflow import FlowSpec, current, step, torchrun

SIZE = 4 << 20

def value(node, seed=0):
    return bytes([65 + node + seed]) * SIZE

def train():
    return value(int(os.environ["RANK"]))

class Moved:
    # Counts what passes between this node's task and its guard.
    def __init__(self, link):
        self.real, self.ops, self.bytes = link.request, [], 0
        link.request = self.request

    def request(self, op, payload=b"", **fields):
        header, answer = self.real(op, payload, **fields)
        self.ops.append(op)
        self.bytes += len(answer)
        return header, answer

    def since(self):
        ops, moved = [op for op in self.ops if op != "gather"], self.bytes
        self.ops, self.bytes = [], 0
        return ops, moved

class Large(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=3)

    @torchrun(nproc_per_node=1)
    @step
    def work(self):
        gang = current.gang
        me, control = gang.node_index, gang.is_control
        folder = os.path.join(gang.folder, "values")

        def left():
            return os.listdir(folder) if os.path.isdir(folder) else []

        returned = current.torch.run(entrypoint=train)
        wanted = [value(node) for node in (range(3) if control else [me])]
        self.returned = returned == wanted
        # From here on: what is asked of the guard, and what it answers.
        moved = Moved(gang._link)
        self.moved = {}

        for number in range(3):
            assert gang.broadcast(value(0, number) if control else "not sent") == value(0, number)
            assert not left(), left()
        self.moved["broadcast"] = moved.since()
        assert gang.broadcast(value(1) if me == 1 else None, source=1) == value(1)
        self.moved["broadcast of 1"] = moved.since()
        assert gang.all_gather(value(me)) == [value(node) for node in range(3)]
        self.moved["all_gather"] = moved.since()
        for theirs in (gang.all_gather([me, value(1)] if me == 1 else me),):
            assert theirs == [0, [1, value(1)], 2]
        self.moved["all_gather of one"] = moved.since()
        gathered = gang.gather(value(me))
        assert gathered == ([value(node) for node in range(3)] if control else None)
        self.moved["gather"] = moved.since()
        gathered = gang.gather(value(me), root=2)
        assert gathered == ([value(node) for node in range(3)] if me == 2 else None)
        self.moved["gather to 2"] = moved.since()
        gathered = gang.gather({"node": me}, root=1)
        assert gathered == ([{"node": node} for node in range(3)] if me == 1 else None)
        self.small = moved.since()
        assert not left(), left()

        # A value that does not get through is an error on every node, and the next call works.
        from metaflow_extensions.gang.core.exceptions import BadAttribute, ValueTooStrange
        def told(kind, call):
            try:
                call()
            except kind as error:
                return str(error)
        gang.barrier()
        if me == 2:
            os.chmod(folder, 0o500)
            os.rmdir(folder)
            open(folder, "w").close()  # where its folder has to be
        gang.barrier()
        self.told = [told(ValueTooStrange, lambda: gang.all_gather(value(me)))]
        self.told.append(told(ValueTooStrange, lambda: gang.gather(value(me))))
        if me == 2:
            os.unlink(folder)
            os.mkdir(folder)
        assert gang.all_gather(value(me)) == [value(node) for node in range(3)]
        assert not left(), left()
        for root in (-1, 3):
            assert "this gang has nodes 0 to 2" in told(BadAttribute, lambda: gang.gather(1, root=root))
        self.next(self.join)

    @step
    def join(self, inputs):
        for name in ("returned", "moved", "small", "told"):
            setattr(self, name, [getattr(one, name) for one in inputs])
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Large()
"""


def test_large_values_go_where_they_are_needed_once_and_leave_nothing(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW)
    run.ok(LIMIT_S)
    end = run.client()["end"].task.data
    assert end.returned == [True] * 3

    def ops(kind: str) -> list[list[str]]:
        for _, received in (one[kind] for one in end.moved):
            assert received < 20_000, "large values do not travel in messages"
        return [one[kind][0] for one in end.moved]

    up, serve, send = "upload-value", "serve-values", "send-values"
    assert ops("broadcast") == [[send] * 3, [serve] * 3, [serve] * 3]
    # Node 1 has its value already.
    assert ops("broadcast of 1") == [[send], [up], [serve]]
    assert ops("all_gather") == [[send], [up, serve], [up, serve]]
    assert ops("all_gather of one") == [[send], [up], [serve]]
    # What only node 0 needs: the others receive nothing at all.
    assert ops("gather") == [[], [up], [up]]
    assert [one["gather"][1] for one in end.moved] == [0, 0, 0]
    # ... and what only node 2 needs goes to node 0 and from there to node 2, whose own value stays where it is.
    assert ops("gather to 2") == [[send], [up], [serve]]
    received = [moved for _, moved in end.small]
    assert received[0] == received[2] == 0 and received[1] > 0
    first = "a large value did not get through on node 2: "
    for all_gather, gather in end.told:
        assert all_gather.startswith(f"all_gather(): {first}") and gather.startswith(f"gather(root=0): {first}")

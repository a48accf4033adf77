"""A training that saves each step, on a gang with spare nodes: the flow, the ranks' script, and what its log says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

FLOW = """
import json, os, signal, sys, time
from metaflow import BACKENDFlowSpec, current, gang_log, step, torchrun

FOLDER = "PLACE"

if os.environ.get("LACKS") == os.environ.get("MF_PARALLEL_NODE_INDEX", "no node"):
    import a_module_that_is_not_there

def told(number, frame):
    print(f"rank {os.environ['RANK']} was told to end;", flush=True)
    sys.exit(1)

def train(call):
    import torch, torch.distributed as dist  # here, so that the flow's tasks do not import it

    if "SAVES" in os.environ:
        signal.signal(signal.SIGTERM, told)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    node = os.environ["METAFLOW_GANG_ID"].rpartition(".")[2]
    print(f"rank {rank} of {size} is {os.getpid()};", flush=True)
    fate = json.loads(os.environ.get("FATE", "{}"))  # by node: the step from which on its rank kills itself
    state, path = torch.zeros(9, dtype=torch.float64), os.path.join(FOLDER, f"last-{call}.pt")
    if rank == 0 and os.path.exists(path):
        state = torch.load(path)
    dist.broadcast(state, 0)
    weights, start = state[:-1], int(state[-1])
    for step in range(start, int(os.environ.get("STEPS", 40))):
        if node in fate and step >= fate[node]:
            os.kill(os.getpid(), signal.SIGKILL)
        chance = torch.Generator().manual_seed(1000 * step + rank)
        x = torch.randn(16, 8, generator=chance, dtype=torch.float64)
        error = x @ weights - x.sum(1)
        both = torch.cat([2 * x.T @ error / 16, (error ** 2).mean()[None]])
        dist.all_reduce(both)
        weights -= 0.05 * both[:-1] / size
        if rank == 0:
            state[-1] = step + 1
            torch.save(state, path + ".new")
            os.replace(path + ".new", path)
        gang_log(step, loss=float(both[-1] / size))
        place = f"{node} as {os.environ['GROUP_RANK']} of {os.environ['GROUP_WORLD_SIZE']}"
        print(f"step {step} of rank {rank} of {size} on {place} in {call}: {float(both[-1]).hex()} "
              f"at {time.time():.3f};", flush=True)
        while rank == 0 and os.path.exists(os.path.join(FOLDER, f"hold-{step}")):
            time.sleep(0.01)
        time.sleep(0.05)
    return [rank, float(both[-1]).hex()]

class Spares(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=NODES)

    @torchrun(nproc_per_node=1, ATTRIBUTES)
    OF_BACKEND
    @step
    def work(self):
        node = current.gang.node_index
        print(f"up {node} task={os.getpid()} guard={current.gang._link.guard_pid};", flush=True)
        options = {"max_restarts": 0, "monitor_interval": 0.1} if "AGENT" in os.environ else {}
        if "SAVES" in os.environ:
            current.gang.on_preemption(lambda: print(f"node {node} has saved;", flush=True), seconds=5)
        calls = []
        for call in range(int(os.environ.get("CALLS", 1))):
            calls.append(current.torch.run(options, entrypoint=train, entrypoint_args={"call": call}))
            print(f"call {call} is over on node {node};", flush=True)
            while os.path.exists("between"):
                time.sleep(0.01)
        self.node, self.calls = node, calls
        self.next(self.join)

    @step
    def join(self, inputs):
        self.joined = [node.node for node in inputs]
        self.calls = inputs[0].calls
        self.of_spares = [node.calls for node in inputs[1:] if not node.calls[-1]]
        self.next(self.end)

    @step
    def end(self):
        print("RESULT", json.dumps(self.joined))

if __name__ == "__main__":
    Spares()
"""

STEP = re.compile(
    r"step (\d+) of rank (\d+) of (\d+) on (\d+) as (\d+) of (\d+) in (\d+): (\S+) at ([\d.]+);",
)


def flow(attributes: str, nodes: int = 4, place: object = ".", backend: str = "", of_backend: str = "") -> str:
    """The flow, whose training saves below ``place``, and holds at step N while a file hold-N is there.

    Parameters
    ----------
    attributes : str
        Of ``@torchrun``.
    backend, of_backend : str
        The name of a backend's decorator, and its attributes.
    """
    text = FLOW.replace("    OF_BACKEND\n", f"    @{backend}({of_backend})\n" if backend else "")
    text = text.replace("BACKEND", f"{backend}, " if backend else "").replace("PLACE", str(place))
    return text.replace("NODES", str(nodes)).replace("ATTRIBUTES", attributes)


@dataclass(frozen=True)
class Step:
    """One step of one rank, as its log has it."""

    step: int
    rank: int
    size: int
    node: int
    node_rank: int
    nodes: int
    call: int
    loss: str
    at: float


def steps(output: str) -> list[Step]:
    """All steps, in the order of time."""
    found = [Step(*map(int, match.group(*range(1, 8))), match[8], float(match[9])) for match in STEP.finditer(output)]
    return sorted(found, key=lambda step: step.at)


def losses(output: str, call: int = 0) -> dict[int, str]:
    """By step, the loss of the last time that it was made; all ranks have the same."""
    return {step.step: step.loss for step in steps(output) if step.call == call}


def world(output: str, since: float) -> list[tuple[int, int, int]]:
    """Node, rank and world size of those that have made a step after ``since`` (epoch), by rank."""
    return sorted(
        {(step.rank, step.node, step.size) for step in steps(output) if step.at > since},
    )


def gone_on_after(output: str, since: float, nodes: Sequence[int]) -> float:
    """Seconds from ``since`` (epoch) to the first step of a try that the ranks of all ``nodes``, by node rank, made."""
    first: dict[int, float] = {}
    for step in steps(output):
        if step.at > since and step.nodes == len(nodes) and step.node == nodes[step.node_rank]:
            first.setdefault(step.node, step.at)
    assert set(first) == set(nodes), (first, nodes)
    return max(first.values()) - since


def pids(output: str) -> dict[int, tuple[int, int]]:
    """By node, the processes of its task and of its guard."""
    return {int(m[1]): (int(m[2]), int(m[3])) for m in re.finditer(r"up (\d+) task=(\d+) guard=(\d+);", output)}

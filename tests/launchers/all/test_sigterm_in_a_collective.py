"""SIGTERM to a node's task while the framework's C code waits in a collective: it is heard at once and told as that.

One node does not take part in the last collective, so the other waits in C, where no body can be interrupted: it is
killed when the time for saving is over, unless its connections close before.
"""

from __future__ import annotations

import re
import signal
import time

import pytest
from support.faults import kill_process
from support.flows import FlowRunner
from support.frameworks.mpi import OPEN_MPI_4, path_with
from support.frameworks.tensorflow import END_S, QUIET, START_S
from support.requirements import require_packages

BIG = pytest.mark.big

FLOW = """
import os, sys, time
from metaflow import FlowSpec, current, step
import metaflow

LAUNCHER, WAITS = os.environ["LAUNCHER"], int(os.environ["WAITS"])
decorator = getattr(metaflow, "gang" if LAUNCHER == "torch" else LAUNCHER)

def jax_sum():
    import jax, jax.numpy as jnp
    jax.distributed.initialize()
    total = jax.pmap(lambda value: jax.lax.psum(value, "all"), axis_name="all")
    return lambda: float(total(jnp.ones(1))[0])

def tensorflow_sum():
    import tensorflow as tf
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    @tf.function
    def total():
        return strategy.reduce("sum", strategy.run(lambda: tf.constant(1.0)), axis=None)
    return lambda: float(total())

def torch_sum():
    import torch
    port = current.gang.broadcast(current.gang.free_port())
    me, all_nodes = current.gang.node_index, current.gang.num_nodes
    address = f"tcp://{current.gang.main_address}:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=me, world_size=all_nodes)
    def total():
        value = torch.ones(1)
        torch.distributed.all_reduce(value)
        return float(value)
    return total

def metaflow_ray_sum():
    # The body runs on node 0 alone. No process of Ray's other than this one waits.
    import ray
    ray.init(logging_level="error")
    one = ray.remote(lambda: 1.0)
    never = ray.remote(lambda: time.sleep(1000))
    calls = []
    def total():
        calls.append(1)
        places = [{"num_cpus": 0, "resources": {f"node:{node}": 0.01}} for node in range(2)]
        if len(calls) > 3:
            return ray.get([never.options(**place).remote() for place in places])
        return sum(ray.get([one.options(**place).remote() for place in places]))
    return total

class InACollective(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @decorator
    @step
    def work(self):
        me = int(os.environ["MF_PARALLEL_NODE_INDEX"])
        def save():
            open(f"saved-{me}", "w").close()
        current.gang.on_preemption(save, seconds=3.0)
        total = globals()[f"{LAUNCHER}_sum"]()
        for _ in range(3):
            assert total() == 2.0
        print(f"ready {me} task={os.getpid()};", flush=True)
        total() if me == WAITS else time.sleep(1000)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    InACollective()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "waits", "struck"),
    [
        ("tensorflow", 1, 1),
        ("jax", 1, 1),
        ("torch", 1, 1),
        pytest.param("metaflow_ray", 0, 0, marks=BIG),
        *(
            pytest.param(launcher, waits, struck, marks=BIG)
            for launcher in ("tensorflow", "jax", "torch")
            for waits, struck in ((0, 0), (0, 1), (1, 0))
        ),
    ],
)
def test_it_is_a_preemption(flow_run: FlowRunner, launcher: str, waits: int, struck: int) -> None:
    is_ray = launcher == "metaflow_ray"
    require_packages("ray" if is_ray else launcher)
    run = flow_run(FLOW, env={**QUIET, "LAUNCHER": launcher, "WAITS": str(waits)})
    pattern = re.compile(r"ready (\d) task=(\d+);")
    run.wait_for(pattern, START_S, count=1 if is_ray else 2)
    time.sleep(0.5)  # it waits in the collective, which nothing outside of it can see
    tasks = {int(m[1]): int(m[2]) for m in pattern.finditer(run.output)}
    started = time.monotonic()
    kill_process(tasks[struck], signal.SIGTERM)
    output = run.fails(END_S)
    print(f"{launcher}, node {waits} in a collective, SIGTERM to node {struck}: {time.monotonic() - started:.1f} s")
    assert re.search(rf"node {struck} \(.*\): was told to end \(SIGTERM\)", output), run.dump()
    assert "killed by" not in output, run.dump()
    assert (run.folder / f"saved-{0 if is_ray else 1 - waits}").exists(), run.dump()


RANKS = """
import os, time

if os.environ["LAUNCHER"] == "mpi":
    from mpi4py import MPI
    rank = MPI.COMM_WORLD.rank
    def total():
        return MPI.COMM_WORLD.allreduce(1.0)
else:
    import torch
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    def total():
        value = torch.ones(1)
        torch.distributed.all_reduce(value)
        return float(value)
for _ in range(3):
    assert total() == 2.0
print(f"ready {rank};", flush=True)
total() if rank == int(os.environ["WAITS"]) else time.sleep(1000)
"""

STARTS_RANKS = """
import os, sys
from metaflow import FlowSpec, current, step
import metaflow

LAUNCHER = os.environ["LAUNCHER"]

class Ranks(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @getattr(metaflow, LAUNCHER)
    @step
    def work(self):
        me = current.gang.node_index
        current.gang.on_preemption(lambda: open(f"saved-{me}", "w").close(), seconds=3.0)
        if LAUNCHER == "mpi":
            current.mpi.run(args=["-n", "2"], program=[sys.executable, "ranks.py"])
        elif LAUNCHER == "deepspeed":
            current.deepspeed.run(entrypoint="ranks.py", deepspeed_args=["--num_gpus", "1"])
        else:
            current.torch.run(entrypoint="ranks.py", nproc_per_node=1)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Ranks()
"""


@BIG
@pytest.mark.parametrize("struck", [0, 1])
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "mpi"])
def test_it_is_one_while_ranks_wait_in_a_collective(flow_run: FlowRunner, launcher: str, struck: int) -> None:
    require_packages("mpi4py" if launcher == "mpi" else "deepspeed" if launcher == "deepspeed" else "torch")
    env = {**QUIET, "LAUNCHER": launcher, "WAITS": "1"}
    if launcher == "mpi":
        env["PATH"] = path_with(OPEN_MPI_4)
    run = flow_run(STARTS_RANKS, env=env, files={"ranks.py": RANKS})
    run.wait_for(re.compile(r"ready \d;"), START_S, count=2)
    time.sleep(0.5)  # as above
    kill_process(run.tasks("work")[struck], signal.SIGTERM)
    output = run.fails(END_S)
    assert re.search(rf"node {struck} \(.*\): was told to end \(SIGTERM\)", output), run.dump()
    assert "killed by" not in output, run.dump()
    saved = {"saved-0"} if launcher == "mpi" else {"saved-0", "saved-1"}  # the body of @mpi runs on node 0 alone
    assert {path.name for path in run.folder.glob("saved-*")} == saved, run.dump()

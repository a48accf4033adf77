"""The one flow of all cells: FAULTS_LAUNCHER says under which decorator, FAULTS_WHEN where its nodes wait.

See :mod:`acts` for how they tell where they are, and how the fault is done.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import acts
from acts import LAUNCHER, WHAT, WHEN, WHO


def task_name() -> str:
    """Which node's task this process is, "" where it is none of the gang's; known before Metaflow is imported."""
    words = sys.argv
    if "step" not in words or "work" not in words:
        return ""
    if words[words.index("--ubf-context") + 1] == "ubf_control":
        return "task 0"
    index = os.environ.get("MF_PARALLEL_NODE_INDEX")
    return "task " + (index if index is not None else words[words.index("--split-index") + 1])


TASK = task_name()
if TASK:
    acts.reached(TASK, "importing")
    if WHEN == "forming" and f"task {int(os.environ['FAULTS_NODES']) - 1}" == TASK:
        acts.mark(TASK, "late")  # for the others the gang does not form while this one is away
        acts.wait()
    if WHAT.startswith("blocked "):
        import signal

        signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, WHAT.removeprefix("blocked "))])

import atexit  # noqa: E402
import contextlib  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402

import metaflow  # noqa: E402
from metaflow import FlowSpec, current, resources, step, user_step_decorator  # noqa: E402

OPTIONS = {
    "torchrun": {"nproc_per_node": 2},
    "agent": {"nproc_per_node": 2},
}
NAMES = {"agent": "torchrun", "ray": "metaflow_ray"}
PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "program.py")


def launcher(function):
    decorator = getattr(metaflow, NAMES.get(LAUNCHER, LAUNCHER))
    limits = {"all_nodes_started_timeout": float(os.environ["FAULTS_JOIN_S"])}
    if "FAULTS_END_S" in os.environ:
        limits["end_timeout"] = float(os.environ["FAULTS_END_S"])
    if "FAULTS_RESTARTS" in os.environ:
        limits["restarts"] = int(os.environ["FAULTS_RESTARTS"])
    return decorator(**limits, **OPTIONS.get(LAUNCHER, {}))(function)


@user_step_decorator
def around(step_name, flow, inputs, attributes):
    """Another package's decorator: what comes before the gang's body and after it."""
    acts.reached(TASK, "before join")
    try:
        yield
    except Exception:
        if WHAT == "slow end hook" and TASK == WHO:
            time.sleep(acts.HOOK_S)
            acts.mark(TASK, "hook ended")
        raise
    acts.reached(TASK, "end hook")


def hooked(function):
    return around(function) if WHEN in ("before join", "end hook") or WHAT == "slow end hook" else function


def bare(gang, me):
    """@gang: the nodes wait in the body, in a collective that the last node keeps from ending, or for commands."""
    if WHEN == "ranks":
        acts.mark(TASK, "ranks")
        gang.run([sys.executable, PROGRAM])
    elif WHEN in ("body", "collective"):
        if WHAT == "thread kept" and TASK == WHO:
            threading.Thread(target=time.sleep, args=(1000,)).start()
        if WHAT in ("slow end hook", "thread kept") and me == 1:
            acts.mark(TASK, WHEN)
            acts.wait_for("go")
            acts.ACTS["raise"]()
        acts.reached(TASK, WHEN)
        last = gang.num_nodes - 1
        hold = os.environ.get("FAULTS_HOLD", "")
        if hold and me == last:
            HOLDS[hold]()
        if WHEN == "body" or (me == last and f"task {last}" != WHO):
            acts.wait()
        else:
            gang.barrier()


def hold_the_gil():
    """Locked twice by one thread, a mutex waits for ever; no signal ends that, and PyDLL keeps the GIL."""
    import ctypes

    mutex, lock = ctypes.create_string_buffer(64), ctypes.PyDLL(None).pthread_mutex_lock
    lock(mutex), lock(mutex)


def be_deaf():
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(1000)


HOLDS = {"gil": hold_the_gil, "deaf": be_deaf}


def torch_ranks(gang, me):
    acts.mark(TASK, WHEN)
    current.torch.run({"monitor_interval": 0.1} if LAUNCHER == "agent" else None, PROGRAM)


def deepspeed_ranks(gang, me):
    acts.mark(TASK, WHEN)
    current.deepspeed.run(entrypoint=PROGRAM, deepspeed_args={"num_gpus": 2})


def mpi_ranks(gang, me):
    acts.mark(TASK, WHEN)
    current.mpi.run(args=["-n", "4"], program=[sys.executable, PROGRAM])


def ray_ranks(gang, me):
    """A remote function on each node, for whose end the driver waits."""
    import ray

    ray.init(logging_level="error")

    @ray.remote(max_retries=0)
    def rank(number):
        sys.path.insert(0, os.path.dirname(PROGRAM))
        import acts

        acts.reached(f"rank {number}", WHEN)
        acts.wait()

    placed = [rank.options(num_cpus=0, resources={f"node:{node}": 0.1}).remote(node) for node in range(gang.num_nodes)]
    acts.reached(TASK, WHEN)
    ray.get(placed)


def tensorflow_loop(gang, me):
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    @tf.function
    def total(value):
        return strategy.reduce("sum", strategy.run(tf.identity, args=(value,)), axis=None)

    loop(lambda: float(total(tf.constant(1.0))))


def jax_loop(gang, me):
    import jax
    import jax.numpy as jnp

    jax.distributed.initialize()
    total = jax.pmap(lambda value: jax.lax.psum(value, "all"), axis_name="all")
    loop(lambda: float(total(jnp.ones(1))[0]))


def loop(collective):
    """Sums without an end; the fault is done when the others have begun the next."""
    for _ in range(3):
        collective()
    acts.mark(TASK, WHEN)
    while not acts.is_there("finish"):
        if TASK == WHO and WHAT in acts.ACTS and acts.is_there("go"):
            acts.ACTS[WHAT]()
        collective()
        time.sleep(acts.STEP_S)


BODIES = {
    "gang": bare,
    "torchrun": torch_ranks,
    "agent": torch_ranks,
    "deepspeed": deepspeed_ranks,
    "mpi": mpi_ranks,
    "ray": ray_ranks,
    "tensorflow": tensorflow_loop,
    "jax": jax_loop,
}


class Faults(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["FAULTS_NODES"]))

    @hooked
    @resources(cpu=2)
    @launcher
    @step
    def work(self):
        try:
            BODIES[LAUNCHER](current.gang, current.gang.node_index)
        except acts.ReturnEarly:
            print("returns early", flush=True)
        if WHEN == "storing":
            self.slow = acts.Slow(TASK)
        if WHEN == "end":
            atexit.register(acts.reached, TASK, "end")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Faults()

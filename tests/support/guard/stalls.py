"""Gangs that stall, or only look so: real guards and ranks, no Metaflow run. For tests and ``benchmarks/stalls.py``.

As a script it is one rank, which does what the case of its name does; ``work`` is what each node of a gang does.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 5.0

TRAINS_S = 3 * TIMEOUT_S

WAITS_S = TRAINS_S + 1

PAUSE = 10_000


def wait_for_ever() -> None:
    time.sleep(PAUSE)


def sleeps_in_python(rank: int) -> None:
    wait_for_ever()


def sleeps_in_c(rank: int) -> None:
    while True:
        ctypes.CDLL(None).sleep(PAUSE)  # a signal ends it


def waits_for_a_lock_in_c(rank: int) -> None:
    lock = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).sem_init(lock, 0, 0)
    while True:
        ctypes.CDLL(None).sem_wait(lock)


def waits_in_a_collective(rank: int) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", rank=0, world_size=2)
    dist.all_reduce(torch.ones(4))


def does_not_come_to_the_collective(rank: int) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", rank=1, world_size=2)
    wait_for_ever()


def waits_for_a_store_that_nobody_opens(rank: int) -> None:
    import torch.distributed as dist

    with socket.socket() as taken:  # it does not listen
        taken.bind(("127.0.0.1", 0))
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{taken.getsockname()[1]}", rank=1, world_size=2)


def is_stopped(rank: int) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def reads_a_dead_pipe(rank: int) -> None:
    read, _ = os.pipe()
    os.read(read, 1)


def spins_in_c(rank: int) -> None:
    hashlib.pbkdf2_hmac("sha256", b"", b"", (1 << 31) - 1)


def waits_for_another(rank: int) -> None:
    time.sleep(WAITS_S)


def trains(rank: int) -> None:
    weights, end = [0.5] * 2000, time.monotonic() + TRAINS_S
    while time.monotonic() < end:
        weights = [weight * 0.999 + 0.0001 for weight in weights]


def trains_by_long_calls(rank: int) -> None:
    end = time.monotonic() + TRAINS_S
    while time.monotonic() < end:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 300_000)


def loads_data_in_a_child(rank: int) -> None:
    pid = os.fork()
    if pid == 0:
        trains(rank)
        os._exit(0)
    os.waitpid(pid, 0)


def writes_a_checkpoint(rank: int) -> None:
    end = time.monotonic() + TRAINS_S
    with open(os.devnull, "wb") as file:
        while time.monotonic() < end:
            file.write(bytes(1 << 20))
            time.sleep(0.5)


def prints_now_and_then(rank: int) -> None:
    for _ in range(int(TRAINS_S / 3)):
        print("waiting for the queue")
        time.sleep(3)


STALLS = {
    "sleeps_in_python": "wait_for_ever",
    "sleeps_in_c": "sleeps_in_c",
    "waits_for_a_lock_in_c": "waits_for_a_lock_in_c",
    "reads_a_dead_pipe": "reads_a_dead_pipe",
    "spins_in_c": "spins_in_c",
    "waits_in_a_collective": "all_reduce",
    "does_not_come_to_the_collective": "wait_for_ever",
    "waits_for_a_store_that_nobody_opens": "init_process_group",
}
"""By case: the function in which such a rank stands."""

WORK = (
    "trains",
    "trains_by_long_calls",
    "loads_data_in_a_child",
    "writes_a_checkpoint",
    "prints_now_and_then",
)
"""What must not be taken for a stall, also where all other ranks wait for the one that does it."""


@dataclass
class Outcome:
    """What became of a gang of two nodes; ``seconds`` from the start of its ranks."""

    failure: dict[str, Any] | None
    report: str
    seconds: float


def run_cases(*cases: str, timeout: float = TIMEOUT_S) -> Outcome:
    """Run a gang of two nodes, whose ranks do one case each, until it ends."""
    from support.guard.many_nodes import ManyNodes

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with ManyNodes(2, Path(__file__), settings={"stall_timeout": timeout, "kill_grace": 0.1}) as nodes:
        replies = nodes.call(cases=cases, port=port)
    assert replies[0]["report"] == replies[1]["report"]
    return Outcome(replies[0]["failure"], replies[0]["report"], replies[0]["seconds"])


def work(gang: Any, order: dict[str, Any]) -> dict[str, Any]:
    """One node: launches every second of the ranks."""
    from metaflow_extensions.gang.core.exceptions import GangException, GangInterrupt
    from metaflow_extensions.gang.core.gang.launch_plan import LaunchPlan, Process
    from metaflow_extensions.gang.core.guard.samples.user_metrics import FILE, FILE_VARIABLE
    from metaflow_extensions.gang.core.guard.stalls import stack_file
    from metaflow_extensions.gang.core.ranks.functions import RANK_MAIN

    link = gang._link
    stack_file.register(gang.folder, stack_file.BODY)
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(order["port"]), "GLOO_SOCKET_IFNAME": "lo"}
    shared = {**os.environ, **rendezvous, FILE_VARIABLE: os.path.join(gang.folder, FILE)}
    processes = []
    for rank, case in enumerate(order["cases"]):
        if rank % gang.num_nodes == gang.node_index:
            argv = (sys.executable, "-u", RANK_MAIN, "--script", __file__, case)
            env = {**shared, "RANK": str(rank)}
            processes.append(Process(argv, env, os.getcwd(), title=f"rank {rank}", rank=rank))
    link.request("formed")
    started = time.monotonic()
    try:
        gang.launch(LaunchPlan(tuple(processes)))
        gang.barrier()
        return {"failure": None, "report": "", "seconds": time.monotonic() - started}
    except (GangException, GangInterrupt):
        seconds = time.monotonic() - started
        reply, _ = link.request("unwound")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # that this node ends by an exception now is of no interest
        return {"failure": reply["failure"], "report": reply["report"], "seconds": seconds}


if __name__ == "__main__":
    globals()[sys.argv[1]](int(os.environ["RANK"]))

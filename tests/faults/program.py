"""What the ranks of a cell run, under whichever launcher: they meet, work together, and one of them is struck."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import time

import acts


def torch_ranks() -> tuple[int, Callable[[bool], bool]]:
    """This rank's number, and a collective: whether all say yes, so that no rank leaves while another waits for it."""
    import torch
    import torch.distributed as dist

    def do_all(says: bool) -> bool:
        answer = torch.tensor(float(says))
        dist.all_reduce(answer, dist.ReduceOp.MIN)
        return bool(answer)

    dist.init_process_group("gloo")
    return dist.get_rank(), do_all


def mpi_ranks() -> tuple[int, Callable[[bool], bool]]:
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank, lambda says: bool(MPI.COMM_WORLD.allreduce(int(says), MPI.MIN))


def bare() -> tuple[int, Callable[[bool], bool]]:
    """A command of @gang: they know nothing of each other."""
    return int(os.environ["MF_PARALLEL_NODE_INDEX"]), lambda says: says


def main() -> None:
    meet = {"gang": bare, "mpi": mpi_ranks}.get(acts.LAUNCHER, torch_ranks)
    if acts.WHEN == "rank imports":
        number = int(os.environ.get("RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or 0)
        acts.reached(f"rank {number}", "rank imports")
    rank, do_all = meet()
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with open(os.path.join(acts.FOLDER, "at", f".child {rank}"), "w") as file:
        file.write(str(child.pid))
    os.rename(file.name, os.path.join(acts.FOLDER, "at", f"child of rank {rank}@{acts.WHEN}"))
    do_all(True)
    who = f"rank {rank}"
    acts.mark(who, acts.WHEN)
    acts.log_progress()
    chatty = acts.WHAT == "raise beside chatty ranks"
    if chatty and who != acts.WHO:
        acts.chatter()
    alone = chatty or acts.WHEN == "ranks compute"
    is_over = False
    while not is_over:
        if who == acts.WHO and acts.WHAT in acts.ACTS and acts.is_there("go") and acts.IS_FIRST_TRY:
            acts.ACTS[acts.WHAT]()
        is_over = acts.is_there("finish") if alone else do_all(acts.is_there("finish"))
        time.sleep(acts.STEP_S)  # ranks that only wait for each other keep all processors busy
    child.kill()
    child.wait()


if __name__ == "__main__":
    main()

"""Where the ranks of hang.py stood when @pyspy looked for the last time.

python examples/recipes/hang_stacks.py RUN
"""

import sys

from metaflow import PySpy, Step

stood = {}
for task in Step(f"Hang/{sys.argv[1]}/train"):
    for process in PySpy(task).latest()["processes"]:
        rank = process["distributed_environment"].get("RANK")
        if rank is not None and "pyspy" in process:
            (main,) = (thread for thread in process["pyspy"]["traces"] if thread["thread_name"] == "MainThread")
            stood[int(rank)] = " < ".join(frame["name"] for frame in main["frames"])

for rank, frames in sorted(stood.items()):
    print(f"rank {rank} in {frames}")

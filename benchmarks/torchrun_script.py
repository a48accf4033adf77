"""What both sides of torchrun.py run: one collective, and the moments before and after, as a file for each rank."""
# ruff: noqa: E402 - the process is told of before torch is imported, which takes seconds

import json
import os
import time

folder, rank = os.environ["BENCHMARK_FOLDER"], os.environ["RANK"]
with open(os.path.join(folder, f"rank-{rank}.pid"), "w") as file:
    file.write(str(os.getpid()))

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
first_collective = time.time()
dist.barrier()
dist.destroy_process_group()
with open(os.path.join(folder, f"rank-{rank}.json"), "w") as file:
    json.dump({"first_collective": first_collective, "script_end": time.time()}, file)

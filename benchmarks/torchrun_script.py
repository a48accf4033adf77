"""What both sides of torchrun.py run: one collective, and the moments before and after, as a file for each rank."""

import json
import os
import time

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
first_collective = time.time()
dist.barrier()
dist.destroy_process_group()
with open(os.path.join(os.environ["BENCHMARK_FOLDER"], f"rank-{os.environ['RANK']}.json"), "w") as file:
    json.dump({"first_collective": first_collective, "script_end": time.time()}, file)

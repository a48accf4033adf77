"""A rank of checkpoint_runs.py: it trains some epochs, and rank 0 saves each with metaflow-checkpoint."""

import argparse
import json
import os
import tempfile

import torch
import torch.distributed as dist
from metaflow import Checkpoint

parser = argparse.ArgumentParser()
parser.add_argument("--begin", type=int)
parser.add_argument("--end", type=int)
parser.add_argument("--local_rank", type=int)  # DeepSpeed gives it
options = parser.parse_args()

dist.init_process_group("gloo")
for epoch in range(options.begin, options.end):
    total = torch.ones(1)
    dist.all_reduce(total)
    if dist.get_rank() == 0:
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "state.json"), "w") as file:
                json.dump({"epoch": epoch + 1, "saved_by": "a rank"}, file)
            Checkpoint().save(folder, name=f"epoch-{epoch}")
        print(f"epoch {epoch} of {int(total)} ranks is saved", flush=True)
    dist.barrier()
dist.destroy_process_group()

"""Ranks of mpirun save checkpoints with metaflow-checkpoint, the body saves the result, and @retry goes on.

python examples/recipes/checkpoint_mpi.py run

A rank fails in epoch 2 of the first attempt. Prints "the last attempt began with epoch 2, saved by a rank".
"""

import json
import os
import tempfile

from metaflow import FlowSpec, checkpoint, current, mpi, retry, step

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkpoint_mpi_rank.py")


class CheckpointMpi(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @mpi
    @step
    def train(self):
        self.begin = {"epoch": 0, "saved_by": "nobody"}
        if current.checkpoint.is_loaded:
            with open(os.path.join(current.checkpoint.directory, "state.json")) as file:
                self.begin = json.load(file)
        fails = ["--fails"] if current.retry_count == 0 else []
        current.mpi.run(["-n", "2"], ["python", SCRIPT], ["--begin", str(self.begin["epoch"]), *fails])
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "state.json"), "w") as file:
                json.dump({"epoch": 4, "saved_by": "the body"}, file)
            self.saved = current.checkpoint.save(folder, name="end")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.begin, self.saved = inputs[0].begin, inputs[0].saved
        print(f"the last attempt began with epoch {self.begin['epoch']}, saved by {self.begin['saved_by']}")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    CheckpointMpi()

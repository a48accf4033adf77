"""Each run goes on from what the run before it has saved with metaflow-checkpoint, with @torchrun and @deepspeed.

python examples/recipes/checkpoint_runs.py run        # epochs 0 and 1
python examples/recipes/checkpoint_runs.py run        # epochs 2 and 3

The ranks are a script, checkpoint_rank.py, which saves after each epoch; the step's body saves at the end.
"""

import json
import os
import tempfile

from metaflow import FlowSpec, checkpoint, current, deepspeed, step, torchrun

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkpoint_rank.py")


def two_epochs(run):
    """The body of both steps; returns the epoch with which this run has begun, and who had saved that."""
    begin = {"epoch": 0, "saved_by": "nobody"}
    if current.checkpoint.is_loaded:
        with open(os.path.join(current.checkpoint.directory, "state.json")) as file:
            begin = json.load(file)
    begin = current.gang.broadcast(begin)
    end = begin["epoch"] + 2
    run(entrypoint=SCRIPT, entrypoint_args={"begin": begin["epoch"], "end": end})
    if current.gang.is_control:
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "state.json"), "w") as file:
                json.dump({"epoch": end, "saved_by": "the body"}, file)
            current.checkpoint.save(folder, name="end")
    return begin


class CheckpointRuns(FlowSpec):
    @step
    def start(self):
        self.next(self.by_torchrun, num_parallel=2)

    @checkpoint(load_policy="eager")
    @torchrun
    @step
    def by_torchrun(self):
        self.began = two_epochs(current.torch.run)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.torchrun_began = [one.began for one in inputs]
        self.next(self.again)

    @step
    def again(self):
        self.next(self.by_deepspeed, num_parallel=2)

    @checkpoint(load_policy="eager")
    @deepspeed
    @step
    def by_deepspeed(self):
        self.began = two_epochs(current.deepspeed.run)
        self.next(self.compare)

    @step
    def compare(self, inputs):
        self.began = [inputs[0].torchrun_began, [one.began for one in inputs]]
        print("began with:", self.began)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    CheckpointRuns()

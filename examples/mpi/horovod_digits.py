"""Handwritten digits, learned with Horovod on two nodes with two ranks each, over gloo: without MPI and without SSH.

    python examples/mpi/horovod_digits.py run

Needs PyTorch, scikit-learn and a Horovod that was built with gloo (docs/horovod.md says how). Each node is a process of
this machine; with `--with kubernetes` or `--with batch` each is a machine of its own. Prints, at the end, how many of
the test scans the model names rightly.
"""

import os

from metaflow import FlowSpec, current, gang, horovod_run, step

# The script lies beside the flow, here and in the package that remote tasks unpack. Neither may be called horovod.py:
# `import horovod` would find that.
SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "horovod_train.py")


class HorovodDigits(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @gang
    @step
    def train(self):
        # The gang's own folder is this node's alone, and goes with the attempt.
        model = os.path.join(current.gang.folder, "model.pt")
        horovod_run(SCRIPT, {"epochs": 20, "model": model}, nproc_per_node=2)
        if current.gang.is_control:
            import torch

            found = torch.load(model, weights_only=True)
            self.weights, self.accuracy, self.ranks = found["weights"], found["accuracy"], found["ranks"]
        self.next(self.join)

    @step
    def join(self, inputs):
        self.merge_artifacts(inputs, include=["weights", "accuracy", "ranks"])
        self.next(self.end)

    @step
    def end(self):
        print(f"test accuracy {self.accuracy:.1%}, learned by {self.ranks} ranks")


if __name__ == "__main__":
    HorovodDigits()

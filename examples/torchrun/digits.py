"""Real handwritten digits, learned on two nodes with two processes each.

    python examples/torchrun/digits.py run

Each node is a process of this machine; with `--with kubernetes` or `--with batch` each is a machine of its own.
Prints, at the end, how many of the test scans the model names rightly and which node saved it.
"""

import glob
import json
import os

from metaflow import FlowSpec, Parameter, current, retry, step, torchrun

# The script lies beside the flow, here and in the package that remote tasks unpack.
SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "train_digits.py")


class Digits(FlowSpec):
    epochs = Parameter("epochs", default=20, help="how often each scan is looked at")
    checkpoints = Parameter(
        "checkpoints",
        default=".",
        help="folder that node 0 of every attempt reaches: on a cluster, a shared disk",
    )

    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @retry(times=1, minutes_between_retries=0)
    @torchrun(nproc_per_node=2)
    @step
    def train(self):
        # Named after the run and not the attempt: the attempt after a failure continues where that one was.
        checkpoint = os.path.abspath(os.path.join(self.checkpoints, f"digits-{current.run_id}.ckpt"))
        # The gang's own folder is this node's alone, and goes with the attempt.
        model = os.path.join(current.gang.folder, "model.pt")
        current.torch.run(
            entrypoint=SCRIPT,
            entrypoint_args={
                "epochs": self.epochs,
                "checkpoint": checkpoint,
                "model": model,
                "losses": current.gang.folder,
            },
        )
        self.node = current.gang.node_index
        self.losses = {}
        for file in glob.glob(os.path.join(current.gang.folder, "rank*.json")):
            with open(file) as content:
                self.losses[os.path.basename(file)[:-5]] = json.load(content)
        if current.gang.is_control:
            import torch

            self.model = torch.load(model, weights_only=True)
            self.saved_by = f"node {self.node} ({current.gang.nodes[self.node].hostname})"
            os.unlink(checkpoint)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.losses = {f"node {node.node}": node.losses for node in inputs}
        self.merge_artifacts(inputs, include=["model", "saved_by"])  # not loaded here, so this step needs no torch
        self.next(self.end)

    @step
    def end(self):
        from train_digits import accuracy

        for node, ranks in sorted(self.losses.items()):
            for rank, losses in sorted(ranks.items()):
                print(f"{node}, {rank}: loss per epoch", *(f"{loss:.3f}" for loss in losses))
        self.accuracy = accuracy(self.model)
        print(f"test accuracy {self.accuracy:.1%}, saved by {self.saved_by}")


if __name__ == "__main__":
    Digits()

"""Real handwritten digits, learned by DeepSpeed on two nodes with two processes each.

    python examples/deepspeed/digits.py run --stage 3

Each node is a process of this machine; with `--with kubernetes` or `--with batch` each is a machine of its own, and
`--checkpoints` has to be a folder on a disk that they share. The first attempt fails on purpose in the middle; the
second goes on from the checkpoint to which every rank has written its part.
"""

import os

from metaflow import FlowSpec, Parameter, current, deepspeed, resources, retry, step

# The script lies beside the flow, here and in the package that remote tasks unpack.
SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "train_zero.py")


class ZeroDigits(FlowSpec):
    epochs = Parameter("epochs", default=20, help="how often each scan is looked at")
    stage = Parameter("stage", default=1, help="ZeRO's stage: 1 shares out the optimizer, 3 the weights, too")
    checkpoints = Parameter("checkpoints", default=".", help="folder that every node reaches")
    fail_after = Parameter("fail_after", default=5, help="epoch after which the first attempt fails; -1 for none")

    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @retry(times=1, minutes_between_retries=0)
    @resources(cpu=2)
    @deepspeed
    @step
    def train(self):
        # Named after the run and not the attempt: the attempt after a failure continues where that one was.
        checkpoints = os.path.abspath(os.path.join(self.checkpoints, f"zero-{current.run_id}"))
        # The gang's own folder is this node's alone, and goes with the attempt.
        model = os.path.join(current.gang.folder, "model.pt")
        config = {
            "train_micro_batch_size_per_gpu": 16,
            "optimizer": {"type": "Adam", "params": {"lr": 3e-3, "torch_adam": True}},
            "zero_optimization": {"stage": self.stage},
        }
        current.deepspeed.run(
            entrypoint=SCRIPT,
            entrypoint_args={
                "deepspeed": None,
                "deepspeed_config": config,
                "epochs": self.epochs,
                "checkpoints": checkpoints,
                "model": model,
                "fail_after": self.fail_after if current.retry_count == 0 else -1,
            },
        )
        if current.gang.is_control:
            import torch

            self.model = torch.load(model, weights_only=True)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.merge_artifacts(inputs, include=["model"])
        self.next(self.end)

    @step
    def end(self):
        from train_zero import accuracy

        self.accuracy = accuracy(self.model)
        print(f"test accuracy {self.accuracy:.1%} with ZeRO stage {self.stage}")


if __name__ == "__main__":
    ZeroDigits()

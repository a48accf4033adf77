"""The digits again, with a function of the flow file in place of a script: its return values come back.

    python examples/torchrun/digits_function.py run

Prints each rank's loss after each epoch, and the test accuracy.
"""

import os

from metaflow import FlowSpec, Parameter, current, retry, step, torchrun


def train(epochs, checkpoint):
    """Runs in every rank; only rank 0 returns the weights, which are the same in all."""
    from train_digits import RANK, fit

    weights, losses = fit(epochs, batch_size=32, checkpoint=checkpoint)
    return {"rank": RANK, "losses": losses, "weights": weights if RANK == 0 else None}


class DigitsFunction(FlowSpec):
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
        checkpoint = os.path.abspath(os.path.join(self.checkpoints, f"digits-{current.run_id}.ckpt"))
        results = current.torch.run(
            entrypoint=train,
            entrypoint_args={"epochs": self.epochs, "checkpoint": checkpoint},
        )
        # In rank order: all ranks' on node 0, this node's own on the others.
        self.ranks = [result["rank"] for result in results]
        if current.gang.is_control:
            self.losses = [result["losses"] for result in results]
            self.model = results[0]["weights"]
            os.unlink(checkpoint)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ranks = [node.ranks for node in inputs]
        self.merge_artifacts(inputs, include=["losses", "model"])
        self.next(self.end)

    @step
    def end(self):
        from train_digits import accuracy

        for rank, losses in enumerate(self.losses):
            print(f"rank {rank}: loss per epoch", *(f"{loss:.3f}" for loss in losses))
        self.accuracy = accuracy(self.model)
        print(f"test accuracy {self.accuracy:.1%}")


if __name__ == "__main__":
    DigitsFunction()

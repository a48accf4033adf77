"""A node fails, the gang fails as one, and @retry's next attempt continues from the checkpoint.

    python examples/gang/checkpoint_recovery.py run

Node 1 fails in epoch 2 of the first attempt. Prints "epochs of the last attempt: [2, 3, 4]": none is done twice.
"""

import json
import os

from metaflow import FlowSpec, Parameter, current, gang, retry, step

EPOCHS = 5


class CheckpointRecovery(FlowSpec):
    checkpoints = Parameter(
        "checkpoints",
        default=".",
        help="folder that node 0 of every attempt reaches: on a cluster, a shared disk",
    )

    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @retry(times=1, minutes_between_retries=0)
    @gang
    @step
    def train(self):
        # Named after the run and not the attempt. Node 0 alone reads and writes it, and tells the others.
        file = os.path.abspath(os.path.join(self.checkpoints, f"recovery-{current.run_id}.ckpt"))
        state = current.gang.broadcast(self.load(file) if current.gang.is_control else None)
        self.epochs = []
        for epoch in range(state["next_epoch"], EPOCHS):
            if epoch == 2 and current.gang.node_index == 1 and current.retry_count == 0:
                raise RuntimeError("node 1 fails on purpose in epoch 2 of the first attempt")
            state["total"] += sum(current.gang.all_gather(epoch * 10 + current.gang.node_index))
            state["next_epoch"] = epoch + 1
            self.epochs.append(epoch)
            if current.gang.is_control:
                self.save(state, file)
            current.gang.barrier()  # nobody is further than what is saved
        self.total = state["total"]
        if current.gang.is_control:
            os.unlink(file)
        self.next(self.join)

    @staticmethod
    def load(file):
        """The last checkpoint, or where training begins."""
        if not os.path.exists(file):
            return {"next_epoch": 0, "total": 0}
        with open(file) as content:
            return json.load(content)

    @staticmethod
    def save(state, file):
        """A whole checkpoint or the previous one, whenever the node dies."""
        with open(file + ".new", "w") as content:
            json.dump(state, content)
        os.replace(file + ".new", file)

    @step
    def join(self, inputs):
        self.epochs, self.total = inputs[0].epochs, inputs[0].total
        print(f"epochs of the last attempt: {self.epochs}, total {self.total}")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    CheckpointRecovery()

"""What a failure looks like: one rank of four finds a label that cannot be, while the others wait for it.

    python examples/torchrun/fails_on_purpose.py run

The run ends at once with an exit code other than 0, and every node says the same: rank 3, on node 1, with the
traceback of that rank. Without a gang around them the other ranks would wait for rank 3 until a timeout.
"""

from metaflow import FlowSpec, current, step, torchrun


def train():
    """Ten steps, of which rank 3 does not survive the fourth."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    for number in range(10):
        label = number if dist.get_rank() != 3 else number * 4
        if label > 9:
            raise ValueError(f"step {number}: a digit's label is between 0 and 9, not {label}")
        dist.all_reduce(torch.tensor([float(label)]))  # the other ranks wait here
    dist.barrier()
    dist.destroy_process_group()


class FailsOnPurpose(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @torchrun(nproc_per_node=2)
    @step
    def train(self):
        current.torch.run(entrypoint=train)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        print("never reached")


if __name__ == "__main__":
    FailsOnPurpose()

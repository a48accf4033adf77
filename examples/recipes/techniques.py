"""Ranks with unequal data; numbers of 16 bits; activations computed twice; gradients sent as 16 bits.

    python examples/recipes/techniques.py run

Rank 0 has 40 batches and rank 1 has 60. Prints how many each rank trained on, and the last loss.
"""

from metaflow import FlowSpec, current, step, torchrun


def train(batches):
    import torch
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.checkpoint import checkpoint

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.GELU(), torch.nn.Linear(64, 64))
            self.head = torch.nn.Linear(64, 1)

        def forward(self, x):
            # The block's activations are not kept for backward(), which computes them again: less memory.
            return self.head(checkpoint(self.block, x, use_reentrant=False))

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedDataParallel(Model())
    model.register_comm_hook(None, fp16_compress_hook)  # gradients travel as 16 bits; half the bytes
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rank = dist.get_rank()
    torch.manual_seed(1 + rank)
    with model.join():  # a rank that has no more batches takes part in the collectives of the others
        for _ in range(batches[rank]):
            x = torch.rand(32, 8)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                predicted = model(x)
            loss = torch.nn.functional.mse_loss(predicted.float(), x.sum(1, keepdim=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    dist.barrier()
    dist.destroy_process_group()
    return {"batches": batches[rank], "loss": loss.item()}


class Techniques(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @torchrun(nproc_per_node=1)
    @step
    def train(self):
        self.results = current.torch.run(entrypoint=train, entrypoint_args={"batches": [40, 60]})
        self.next(self.join)

    @step
    def join(self, inputs):
        self.results = inputs[0].results
        print("each rank:", self.results)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Techniques()

"""Two trainings on the same seed end with the same weights, bit for bit.

    python examples/recipes/reproducible.py run

Every rank draws its data from a seed of its own, and the model starts from a seed that all ranks share.
"""

from metaflow import FlowSpec, Parameter, current, step, torchrun


def train(seed):
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo")
    torch.use_deterministic_algorithms(True)  # an operation that has no deterministic form raises
    torch.manual_seed(seed)  # the same weights in all ranks
    model = DistributedDataParallel(torch.nn.Linear(4, 1))
    data = torch.Generator().manual_seed(seed + 1 + dist.get_rank())  # other data in each rank
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        x = torch.rand(16, 4, generator=data)
        loss = torch.nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    dist.barrier()
    dist.destroy_process_group()
    return model.module.weight.tolist()


class Reproducible(FlowSpec):
    seed = Parameter("seed", default=7, help="seed of the weights and of the data")

    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @torchrun(nproc_per_node=1)
    @step
    def train(self):
        self.first = current.torch.run(entrypoint=train, entrypoint_args={"seed": self.seed})
        self.second = current.torch.run(entrypoint=train, entrypoint_args={"seed": self.seed})
        self.next(self.join)

    @step
    def join(self, inputs):
        self.same = inputs[0].first == inputs[0].second
        print("the same weights twice:", self.same)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Reproducible()

"""A model whose weights are divided among the ranks (FSDP2), saved by all of them and read by fewer ranks (DCP).

    python examples/recipes/fsdp.py run

Four ranks train and save; then two ranks load the same checkpoint. `--folder` is on a disk that all nodes share.
"""

import os

from metaflow import FlowSpec, Parameter, current, step, torchrun


def train(steps, saved, found=None):
    """Go on from the checkpoint in the folder ``found``, and leave one in ``saved``; return the steps and the loss."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    weights, state = get_state_dict(model, optimizer)
    checkpoint = {"model": weights, "optimizer": state, "done": 0}
    if found is not None:
        dcp.load(checkpoint, checkpoint_id=found)  # each rank reads its part, however many ranks wrote it
        set_state_dict(model, optimizer, model_state_dict=checkpoint["model"], optim_state_dict=checkpoint["optimizer"])
    for _ in range(steps):
        x = torch.rand(64, 8)
        loss = torch.nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights, state = get_state_dict(model, optimizer)
    done = checkpoint["done"] + steps
    dcp.save({"model": weights, "optimizer": state, "done": done}, checkpoint_id=saved)  # each rank writes its part
    dist.barrier()
    dist.destroy_process_group()
    return done, loss.item()


class Fsdp(FlowSpec):
    folder = Parameter("folder", default=".", help="a folder that all nodes reach: on a cluster, on a shared disk")

    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @torchrun
    @step
    def train(self):
        one, two = (os.path.abspath(f"{self.folder}/fsdp-{current.run_id}-{name}") for name in ("one", "two"))
        arguments = {"steps": 50, "saved": one}
        self.first = current.torch.run(entrypoint=train, entrypoint_args=arguments, nproc_per_node=2)
        arguments = {"steps": 50, "saved": two, "found": one}
        self.second = current.torch.run(entrypoint=train, entrypoint_args=arguments, nproc_per_node=1)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.first, self.second = inputs[0].first, inputs[0].second
        print(f"four ranks: {self.first[0]}, then two: {self.second[0]}")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Fsdp()

"""Checkpoints on two levels: on each node's own disk every 2 steps, and with metaflow-checkpoint every 8.

    python examples/recipes/local_checkpoints.py run

Rank 1 is killed at step 11, and the gang starts the ranks again, which read the checkpoints of their own nodes. At
step 19 rank 1 fails for good; the next attempt is on other nodes, as far as it knows, and reads the stored one. The
losses are those of `run --undisturbed 1`.
"""

import os
import signal

from metaflow import FlowSpec, Parameter, checkpoint, current, retry, step, torchrun

STEPS, LOCAL, STORED = 24, 2, 8


def train(stored, attempt, fails):
    """In every rank; ``stored`` is the folder of the stored checkpoint, or "". Returns the losses of all steps."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from metaflow import Checkpoint, gang_log

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []

    def state():
        return {"model": model.state_dict(), "momenta": optimizer.state_dict(), "losses": torch.tensor(losses)}

    def save(folder):
        os.makedirs(folder)
        dcp.save(state(), checkpoint_id=f"{folder}/dcp", no_dist=True)
        open(f"{folder}/whole", "w").close()  # a rank that is killed while it saves leaves none

    def load(folder, done):
        for _ in range(done):  # as many as the saved ones
            losses.append(0.0)
        for parameter in model.parameters():  # an optimizer has momenta to load from its first step on
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        found = state()
        dcp.load(found, checkpoint_id=f"{folder}/dcp", no_dist=True)
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["momenta"])
        losses[:] = found["losses"].tolist()

    local = os.environ["METAFLOW_GANG_SCRATCH"]
    mine = max((number for number in range(STEPS) if os.path.exists(f"{local}/{number}/whole")), default=0)
    everybodys = torch.tensor(mine)
    dist.all_reduce(everybodys, dist.ReduceOp.MIN)  # a node that is new has none
    first = everybodys.item()
    if first:
        load(f"{local}/{first}", first)
    elif stored:
        with open(f"{stored}/step") as file:
            first = int(file.read())
        load(stored, first)
    print(f"rank {rank} begins at step {first}", flush=True)

    for number in range(first, STEPS):
        if fails and rank == 1 and attempt == 0 and (number, os.environ["GANG_RESTART"]) == (11, "0"):
            os.kill(os.getpid(), signal.SIGKILL)
        if fails and rank == 1 and attempt == 0 and number == 19:
            raise RuntimeError("rank 1 fails on purpose at step 19 of the first attempt")
        data = torch.rand(size, 16, 8, generator=torch.Generator().manual_seed(number))[rank]  # that of this step
        loss = torch.nn.functional.mse_loss(model(data), data.sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= size
        optimizer.step()
        whole = loss.detach().clone()
        dist.all_reduce(whole)
        losses.append(whole.item() / size)
        gang_log(number, loss=losses[-1])
        done = number + 1
        if done % LOCAL == 0 and os.environ["LOCAL_RANK"] == "0" and not os.path.exists(f"{local}/{done}/whole"):
            save(f"{local}/{done}")
        if done % STORED == 0 and rank == 0:
            save(f"{local}/stored-{done}")
            with open(f"{local}/stored-{done}/step", "w") as file:
                file.write(str(done))
            Checkpoint().save(f"{local}/stored-{done}", name=f"step-{done}")
        dist.barrier()
    dist.destroy_process_group()
    return losses


class LocalCheckpoints(FlowSpec):
    undisturbed = Parameter("undisturbed", default=False, help="no rank fails")

    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @torchrun(nproc_per_node=1, restarts=1)
    @step
    def train(self):
        stored = current.checkpoint.directory if current.checkpoint.is_loaded else ""
        arguments = {"stored": stored, "attempt": current.retry_count, "fails": not self.undisturbed}
        self.losses = current.torch.run(entrypoint=train, entrypoint_args=arguments)[0]
        self.next(self.join)

    @step
    def join(self, inputs):
        self.losses = inputs[0].losses
        print(f"loss of the first step {self.losses[0]:.3f}, of the last {self.losses[-1]:.3f}")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    LocalCheckpoints()

"""torch.distributed inside the step's own body: no script, no launcher, one rank for each node.

    python examples/gang/torch_in_step.py run

The nodes agree on a port through the gang. Fits a line to points of which each node has its own; prints the slope
and the intercept, which all nodes found together (3 and 1).
"""

from metaflow import FlowSpec, current, gang, step


class TorchInStep(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @gang
    @step
    def train(self):
        import torch
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        me = current.gang
        torch.set_num_threads(1)
        port = me.broadcast(me.free_port() if me.is_control else None)
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://{me.main_address}:{port}",
            rank=me.node_index,
            world_size=me.num_nodes,
        )
        torch.manual_seed(me.node_index)  # each node draws points of its own
        x = torch.rand(100, 1)
        y = 3 * x + 1
        model = DistributedDataParallel(torch.nn.Linear(1, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        for _ in range(400):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
        self.line = [round(value.item(), 3) for value in (model.module.weight, model.module.bias)]
        dist.barrier()  # node 0 holds the store: no one leaves before all are done
        dist.destroy_process_group()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.lines = [node.line for node in inputs]
        assert self.lines[0] == self.lines[1], "the nodes train one model"
        print(f"slope {self.lines[0][0]}, intercept {self.lines[0][1]}")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    TorchInStep()

"""Fewer bytes between the nodes: gradients travel as 16-bit numbers, or as PowerSGD's low-rank approximation.

    python examples/gang/compression_hook.py run
    python examples/gang/compression_hook.py run --hook powersgd

Trains one model with the hook and one without, side by side. Prints both losses and by how much the weights differ.
"""

from metaflow import FlowSpec, Parameter, current, gang, step


class CompressionHook(FlowSpec):
    hook = Parameter("hook", default="fp16", help="fp16 or powersgd")

    @step
    def start(self):
        if self.hook not in ("fp16", "powersgd"):
            raise ValueError(f"--hook is fp16 or powersgd, not {self.hook!r}")
        self.next(self.train, num_parallel=2)

    @gang
    @step
    def train(self):
        import torch
        import torch.distributed as dist

        me = current.gang
        torch.set_num_threads(1)
        port = me.broadcast(me.free_port() if me.is_control else None)
        dist.init_process_group(
            "gloo", init_method=f"tcp://{me.main_address}:{port}", rank=me.node_index, world_size=me.num_nodes
        )
        exact, exact_loss = self.fit(None)
        compressed, self.loss = self.fit(self.hook)
        self.exact_loss = exact_loss
        self.difference = (exact - compressed).abs().max().item()
        self.weights = compressed.tolist()
        dist.barrier()
        dist.destroy_process_group()
        self.next(self.join)

    @staticmethod
    def fit(hook):
        """Train a small model, with this compression of its gradients; return its weights and its last loss."""
        import torch
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
        from torch.nn.parallel import DistributedDataParallel

        torch.manual_seed(0)
        target = torch.nn.Linear(32, 8)
        model = DistributedDataParallel(torch.nn.Linear(32, 8))
        if hook == "fp16":
            model.register_comm_hook(None, default_hooks.fp16_compress_hook)
        elif hook == "powersgd":
            # The first steps are exact: the approximation builds on what they have seen.
            state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=10)
            model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        torch.manual_seed(1 + current.gang.node_index)  # from here on each node has data of its own
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(200):
            x = torch.randn(64, 32)
            loss = torch.nn.functional.mse_loss(model(x), target(x).detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model.module.weight.detach(), loss.item()

    @step
    def join(self, inputs):
        assert inputs[0].weights == inputs[1].weights, "compressed or not, the nodes train one model"
        self.merge_artifacts([inputs[0]], include=["loss", "exact_loss", "difference"])
        print(f"loss with {self.hook}: {self.loss:.2e}, without: {self.exact_loss:.2e}")
        print(f"largest difference of a weight: {self.difference:.2e}")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    CompressionHook()

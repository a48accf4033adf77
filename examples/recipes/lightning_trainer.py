"""Lightning's Trainer in the ranks of @torchrun: it finds them by the variables that the launcher has set.

python examples/recipes/lightning_trainer.py run
"""

from metaflow import FlowSpec, current, step, torchrun

RANKS = 2
"""On each node."""


def train(nodes):
    """In every rank. The Trainer starts no processes of its own here: the gang has started them."""
    import lightning
    import torch

    class Sums(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 1)

        def training_step(self, batch, index):
            return torch.nn.functional.mse_loss(self.layer(batch), batch.sum(1, keepdim=True))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.05)

    lightning.seed_everything(1)
    rows = torch.utils.data.DataLoader(torch.rand(512, 8), batch_size=16)
    trainer = lightning.Trainer(
        accelerator="cpu",
        strategy="ddp",
        num_nodes=nodes,
        devices=RANKS,
        max_epochs=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Sums(), rows)
    return trainer.world_size, trainer.global_rank, trainer.global_step


class LightningTrainer(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @torchrun(nproc_per_node=RANKS)
    @step
    def train(self):
        self.found = current.torch.run(entrypoint=train, entrypoint_args={"nodes": current.gang.num_nodes})
        self.next(self.join)

    @step
    def join(self, inputs):
        self.found = inputs[0].found
        print("world size, rank and steps:", self.found)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    LightningTrainer()

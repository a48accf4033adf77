"""Hugging Face's Trainer and Accelerate, unchanged, in the ranks of a gang.

    python examples/recipes/hugging_face.py run

Both find the other ranks in the environment. Needs `pip install transformers accelerate`.
"""

from metaflow import FlowSpec, current, step, torchrun


def with_trainer(folder):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    rows = [{"input_ids": torch.arange(16) % 7, "labels": torch.arange(16) % 7} for _ in range(64)]
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=16, n_embd=32, n_layer=1, n_head=2))
    settings = TrainingArguments(
        folder, max_steps=40, learning_rate=1e-2, use_cpu=True, report_to=[], save_strategy="no"
    )
    trainer = Trainer(model, settings, train_dataset=rows)
    loss = trainer.train().training_loss
    return settings.world_size, loss


def with_accelerate():
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(4, 1)
    data = torch.utils.data.DataLoader(torch.rand(512, 4), batch_size=16)
    model, optimizer, data = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=0.05), data)
    for _ in range(10):
        for x in data:
            loss = torch.nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
    accelerator.end_training()
    return accelerator.num_processes, loss.item()


class HuggingFace(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @torchrun(nproc_per_node=1)
    @step
    def train(self):
        self.trainer = current.torch.run(entrypoint=with_trainer, entrypoint_args=[current.gang.folder])
        self.accelerate = current.torch.run(entrypoint=with_accelerate)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.trainer, self.accelerate = inputs[0].trainer, inputs[0].accelerate
        print("ranks and loss:", self.trainer, self.accelerate)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    HuggingFace()

"""A small GPT learns one sentence, letter by letter, and says it again.

python examples/recipes/gpt.py run
"""

from metaflow import FlowSpec, current, step, torchrun

TEXT = "a gang is the nodes of one step, which start together and end together. " * 8


def train(steps, context=32, width=64):
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    letters = sorted(set(TEXT))
    text = torch.tensor([letters.index(letter) for letter in TEXT])

    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            self.letters, self.places = nn.Embedding(len(letters), width), nn.Embedding(context, width)
            layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0, batch_first=True, norm_first=True)
            self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(width, len(letters))

        def forward(self, x):
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            places = torch.arange(x.shape[1])
            return self.head(self.blocks(self.letters(x) + self.places(places), mask=mask, is_causal=True))

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedDataParallel(Gpt())
    torch.manual_seed(1 + dist.get_rank())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        starts = torch.randint(len(text) - context, (16,))
        batch = torch.stack([text[start : start + context + 1] for start in starts])
        loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    said = text[:8].tolist()
    with torch.no_grad():
        while len(said) < 60:
            said.append(int(model.module(torch.tensor([said[-context:]]))[0, -1].argmax()))
    dist.barrier()
    dist.destroy_process_group()
    return "".join(letters[index] for index in said)


class Gpt(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @torchrun(nproc_per_node=1)
    @step
    def train(self):
        self.said = current.torch.run(entrypoint=train, entrypoint_args={"steps": 120})[0]
        self.next(self.join)

    @step
    def join(self, inputs):
        self.said = inputs[0].said
        print(self.said)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Gpt()

"""A small transformer learns which of four letters a word has most often, and two cards show how it goes.

    python examples/huggingface/card.py run

Needs the packages transformers, accelerate and torch. While it runs, `python examples/huggingface/card.py card server`
shows the cards live; afterwards `python examples/huggingface/card.py card view train --id training_metrics` opens one.
"""

from metaflow import FlowSpec, Parameter, huggingface_card, step

LETTERS, LENGTH = 4, 24


def words(number, seed):
    """Random words, each with the letter that is in it most often: what a Trainer takes as a data set."""
    import torch

    letters = torch.randint(LETTERS, (number, LENGTH), generator=torch.Generator().manual_seed(seed))
    most = torch.nn.functional.one_hot(letters, LETTERS).sum(dim=1).argmax(dim=1)
    return [{"input_ids": word, "labels": label} for word, label in zip(letters, most, strict=True)]


def train(steps):
    """Trains, here in the step's own process; under a launcher each of its processes would do this."""
    from metaflow.huggingface_card_callback import MetaflowHuggingFaceCardCallback
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

    set_seed(1)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(
        BertConfig(vocab_size=LETTERS, num_labels=LETTERS, max_position_embeddings=LENGTH, **shape)
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=".",  # nothing is saved
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=3e-3,
            logging_steps=max(1, steps // 40),
            eval_strategy="steps",
            eval_steps=max(1, steps // 8),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=words(4096, seed=1),
        eval_dataset=words(256, seed=2),
        callbacks=[MetaflowHuggingFaceCardCallback(["loss", "eval_loss", "grad_norm", "learning_rate"])],
    )
    trainer.train()
    return [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]


class Card(FlowSpec):
    steps = Parameter("steps", default=400, help="how many batches of 32 words are looked at")

    @step
    def start(self):
        self.next(self.train)

    @huggingface_card
    @step
    def train(self):
        self.losses = train(self.steps)
        self.next(self.end)

    @step
    def end(self):
        print(f"loss on words that it has not seen: {self.losses[0]:.3f} at first, {self.losses[-1]:.3f} in the end")


if __name__ == "__main__":
    Card()

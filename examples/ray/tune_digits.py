"""Ray Tune looks for the learning rate that names handwritten digits best, and goes on after a failure.

    python examples/ray/tune_digits.py run

Three trials, shared out over two nodes, train scikit-learn's small network and leave checkpoints in the step's folder
of the flow's datastore. In the first attempt one of them breaks on purpose, and with it the step. The second attempt
takes up the search where it was: the broken trial goes on from its checkpoint, and the others need not run again.
Needs Ray and scikit-learn: `pip install "ray[tune]" scikit-learn`.
"""

import os
import pickle
import tempfile

from metaflow import FlowSpec, Parameter, current, metaflow_ray, retry, step

RATES = (1e-4, 1e-3, 1e-2)
BREAKS = 1e-3
EPOCHS_A_ROUND = 5
NAME = "digits"


def train(config, rounds, fail_after):
    """One trial, in a process of its own on some node: a network that learns at config["rate"]."""
    from ray import tune
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, test_size=0.2, stratify=labels, random_state=0)
    train_x, test_x, train_y, test_y = split
    model, first = MLPClassifier((128,), learning_rate_init=config["rate"], batch_size=32, random_state=0), 0
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        model, first = load(checkpoint)
    for number in range(first, rounds):
        for _ in range(EPOCHS_A_ROUND):
            model.partial_fit(train_x, train_y, classes=range(10))
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "model.pkl"), "wb") as file:
                pickle.dump((model, number + 1), file)
            metrics = {"accuracy": model.score(test_x, test_y), "first_round": first}
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))
        if number == fail_after and config["rate"] == BREAKS:
            raise RuntimeError(f"asked to fail after round {number}")


def load(checkpoint):
    """The model of a checkpoint, and the round with which to go on."""
    with checkpoint.as_directory() as folder, open(os.path.join(folder, "model.pkl"), "rb") as file:
        return pickle.load(file)


class TuneDigits(FlowSpec):
    rounds = Parameter("rounds", default=6, help=f"how many rounds, of {EPOCHS_A_ROUND} epochs each")
    fail_after = Parameter("fail_after", default=1, help="round after which the first attempt fails; -1 for none")

    @step
    def start(self):
        self.next(self.search, num_parallel=2)

    @retry(times=1, minutes_between_retries=0)
    @metaflow_ray
    @step
    def search(self):
        import ray
        from ray import tune

        ray.init()
        fail_after = self.fail_after if current.retry_count == 0 else -1
        trainable = tune.with_parameters(train, rounds=self.rounds, fail_after=fail_after)
        # Each attempt has a folder of its own; here are those of the attempts before, the latest first.
        earlier = [f"{path}/{NAME}" for path in current.ray.earlier_storage_paths]
        begun = [path for path in earlier if tune.Tuner.can_restore(path)]
        if begun:
            print(f"taking up the search in {begun[0]}")
            tuner = tune.Tuner.restore(begun[0], trainable, resume_errored=True)
        else:
            tuner = tune.Tuner(
                trainable,
                param_space={"rate": tune.grid_search(RATES)},
                tune_config=tune.TuneConfig(metric="accuracy", mode="max"),
                run_config=tune.RunConfig(name=NAME, storage_path=current.ray_storage_path, verbose=0),
            )
        results = tuner.fit()
        if results.errors:
            raise RuntimeError(f"{len(results.errors)} of {len(results)} trials failed; Tune says above how")
        best = results.get_best_result()
        self.model, _ = load(best.checkpoint)
        self.rate, self.accuracy = best.config["rate"], best.metrics["accuracy"]
        self.first_rounds = {trial.config["rate"]: trial.metrics["first_round"] for trial in results}
        self.next(self.join)

    @step
    def join(self, inputs):
        self.merge_artifacts([inputs[0]], include=["model", "rate", "accuracy", "first_rounds"])
        self.next(self.end)

    @step
    def end(self):
        print(f"test accuracy {self.accuracy:.1%} with a learning rate of {self.rate}")
        print(f"the round with which each rate's trial began, at last: {self.first_rounds}")


if __name__ == "__main__":
    TuneDigits()

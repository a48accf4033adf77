"""Ray Train on the nodes of a gang: a network with torch's DDP, and trees with XGBoost, on the digits.

    python examples/recipes/ray_train.py run

Needs Ray, torch, XGBoost and scikit-learn: `pip install "ray[train]" torch xgboost scikit-learn`.
"""

import os
import tempfile

from metaflow import FlowSpec, current, metaflow_ray, step


def digits(rank, size):
    """This worker's part of the scans for training, and all those for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(images / 16, labels, test_size=0.2, random_state=0)
    return train_x[rank::size], train_y[rank::size], test_x, test_y


def report(metrics, save):
    """Report to Ray Train, worker 0 with a checkpoint: the result has the metrics that came with the last one."""
    import ray.train

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if ray.train.get_context().get_world_rank() == 0:
            save(os.path.join(folder, "model"))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint)


def network(config):
    """In each worker of TorchTrainer, which has formed the process group."""
    import ray.train
    import torch
    from ray.train.torch import prepare_model

    context = ray.train.get_context()
    parts = digits(context.get_world_rank(), context.get_world_size())
    train_x, train_y, test_x, test_y = (torch.tensor(part) for part in parts)
    torch.manual_seed(0)
    model = prepare_model(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(config["epochs"]):
        loss = torch.nn.functional.cross_entropy(model(train_x.float()), train_y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (model(test_x.float()).argmax(1) == test_y).float().mean().item()
    report({"accuracy": right, "workers": context.get_world_size()}, lambda file: torch.save(model.state_dict(), file))


def trees(config):
    """In each worker of XGBoostTrainer, in which XGBoost's workers know each other: every tree is of all parts."""
    import ray.train
    import xgboost

    context = ray.train.get_context()
    train_x, train_y, test_x, test_y = digits(context.get_world_rank(), context.get_world_size())
    data, test = xgboost.DMatrix(train_x, train_y), xgboost.DMatrix(test_x, test_y)
    options = {"objective": "multi:softmax", "num_class": 10, "max_depth": 4, "nthread": 1}
    model = xgboost.train(options, data, num_boost_round=config["rounds"])
    right = float((model.predict(test) == test_y).mean())
    report(
        {"accuracy": right, "workers": xgboost.collective.get_world_size()},
        lambda file: model.save_model(f"{file}.json"),
    )


class RayTrain(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @metaflow_ray
    @step
    def train(self):
        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.xgboost import XGBoostTrainer

        ray.init()
        one_each = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}, placement_strategy="SPREAD")
        where = {"scaling_config": one_each, "run_config": RunConfig(storage_path=current.ray.storage_path)}
        self.of_network = TorchTrainer(network, train_loop_config={"epochs": 60}, **where).fit().metrics
        self.of_trees = XGBoostTrainer(trees, train_loop_config={"rounds": 20}, **where).fit().metrics
        self.next(self.join)

    @step
    def join(self, inputs):
        self.of_network, self.of_trees = inputs[0].of_network, inputs[0].of_trees
        for name, metrics in (("network", self.of_network), ("trees", self.of_trees)):
            print(f"{name}: {metrics['accuracy']:.1%} right, by {metrics['workers']} workers")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    RayTrain()

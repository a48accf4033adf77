"""Handwritten digits on two nodes, with TensorFlow's MultiWorkerMirroredStrategy and a model of Keras 3.

    python examples/tensorflow/digits.py run

The step's body is the training: TF_CONFIG is set when it begins, so the strategy finds the other node. Every worker
keeps its share of each batch, and the gradients are summed over all. Keras 3's own `fit` cannot do that, so the loop is
written out. The chief's model travels to the join step as bytes, so that it gets there from any cluster; there it is
loaded and tried on digits that were held out. Needs `pip install tensorflow scikit-learn`.
"""

import os
import tempfile
from pathlib import Path

from metaflow import FlowSpec, Parameter, current, step, tensorflow

BATCH = 128
"""Digits of a step, over all workers."""


def digits():
    """Training images, test images, training labels, test labels: the same split on every node, shuffled."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    return train_test_split((images / 16).astype("float32"), labels, test_size=297, random_state=0, stratify=labels)


def train(steps):
    """The model after so many steps, and the loss of every 50th; what every node runs."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    images, _, labels, _ = digits()
    data = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=0).repeat().batch(BATCH)
    batches = iter(strategy.experimental_distribute_dataset(data.with_options(current.tensorflow.data_options())))
    with strategy.scope():
        layers = tf.keras.layers
        model = tf.keras.Sequential([layers.Input((64,)), layers.Dense(128, activation="relu"), layers.Dense(10)])
        optimizer = tf.keras.optimizers.Adam(3e-3)
        loss_of_each = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    def on_this_worker(images, labels):
        with tf.GradientTape() as tape:
            # Divided by the digits of all workers: the gradients are summed.
            loss = tf.nn.compute_average_loss(loss_of_each(labels, model(images)), global_batch_size=BATCH)
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    @tf.function
    def on_all_workers(batch):
        return strategy.reduce("sum", strategy.run(on_this_worker, args=batch), axis=None)

    losses = [float(on_all_workers(next(batches))) for _ in range(steps)]
    return model, losses[::50]


class Digits(FlowSpec):
    steps = Parameter("steps", default=300, help="how many batches")

    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @tensorflow
    @step
    def train(self):
        model, self.losses = train(self.steps)
        # Every worker has to save; what those that are not the chief save is thrown away.
        path = current.tensorflow.save_path(os.path.join(current.gang.folder, "digits.keras"))
        model.save(path)
        if current.tensorflow.is_chief:
            self.model = Path(path).read_bytes()
            print(f"saved by node {current.gang.node_index}, loss {self.losses[0]:.3f} to {self.losses[-1]:.3f}")
        self.next(self.join)

    @step
    def join(self, inputs):
        import tensorflow as tf

        self.model = inputs[0].model
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "digits.keras")
            file.write_bytes(self.model)
            model = tf.keras.models.load_model(file)
        _, images, _, labels = digits()
        self.accuracy = float((model.predict(images, verbose=0).argmax(axis=1) == labels).mean())
        self.next(self.end)

    @step
    def end(self):
        print(f"test accuracy {self.accuracy:.1%}")


if __name__ == "__main__":
    Digits()

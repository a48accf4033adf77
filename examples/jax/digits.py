"""Handwritten digits on two nodes with JAX: one array program, whose batches lie in pieces on all of them.

    python examples/jax/digits.py run

`jax.distributed.initialize()` needs no arguments in a @jax step. Then `jax.devices()` are those of all nodes, and a
function under `jit` whose batch is split over them is worked on by all: the mean in the loss, and with it the gradient,
goes over every node. Node 0's parameters are an artifact, which the join step tries on digits that were held out. On a
machine with GPUs each local node takes its share of them; `JAX_PLATFORMS=cpu` leaves them out.
Needs `pip install jax scikit-learn`.
"""

from metaflow import FlowSpec, Parameter, current, step
from metaflow import jax as on_all_nodes  # by another name, since `jax` is JAX itself

BATCH = 128
"""Digits of a step, over all nodes."""


def digits():
    """Training images, test images, training labels, test labels: the same split on every node, shuffled."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    return train_test_split((images / 16).astype("float32"), labels, test_size=297, random_state=0, stratify=labels)


def logits(weights, images):
    """A layer of 128, and one of 10. For JAX's arrays and for NumPy's."""
    hidden = images @ weights["w0"] + weights["b0"]
    return (hidden * (hidden > 0)) @ weights["w1"] + weights["b1"]


def train(steps):
    """The weights after so many steps, as NumPy's arrays, and the loss of every 50th; what every node runs."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()), ("all",))
    everywhere, in_pieces = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("all"))
    random = np.random.default_rng(0)  # the same on every node
    start = {
        "w0": random.normal(0, 0.1, (64, 128)).astype("float32"),
        "b0": np.zeros(128, "float32"),
        "w1": random.normal(0, 0.1, (128, 10)).astype("float32"),
        "b1": np.zeros(10, "float32"),
    }
    weights = jax.device_put(start, everywhere)

    def loss(weights, images, labels):
        scores = jax.nn.log_softmax(logits(weights, images))
        return -jnp.mean(scores[jnp.arange(BATCH), labels])

    @jax.jit
    def update(weights, images, labels):
        value, gradient = jax.value_and_grad(loss)(weights, images, labels)
        return jax.tree.map(lambda weight, slope: weight - 0.5 * slope, weights, gradient), value

    images, _, labels, _ = digits()
    own = BATCH // jax.process_count()  # of each batch, this node's
    losses = []
    for _ in range(steps):
        batch = random.permutation(len(images))[:BATCH][jax.process_index() * own :][:own]
        pieces = [jax.make_array_from_process_local_data(in_pieces, part[batch]) for part in (images, labels)]
        weights, value = update(weights, *pieces)
        losses.append(float(value))
    return jax.device_get(weights), losses[::50]


class Digits(FlowSpec):
    steps = Parameter("steps", default=500, help="how many batches")

    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @on_all_nodes
    @step
    def train(self):
        import jax

        jax.distributed.initialize()
        print(f"process {jax.process_index()} of {jax.process_count()}, {jax.device_count()} devices")
        weights, self.losses = train(self.steps)
        if current.gang.is_control:
            self.weights = weights
        self.next(self.join)

    @step
    def join(self, inputs):
        self.weights = inputs[0].weights  # node 0's
        _, images, _, labels = digits()
        self.accuracy = float((logits(self.weights, images).argmax(axis=1) == labels).mean())
        self.next(self.end)

    @step
    def end(self):
        print(f"test accuracy {self.accuracy:.1%}")


if __name__ == "__main__":
    Digits()

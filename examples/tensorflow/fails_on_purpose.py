"""What a failure looks like: worker 1 of two finds a label that cannot be, while the other waits for it.

    python examples/tensorflow/fails_on_purpose.py run

TensorFlow would wait without an end for a worker that no longer takes part. Here the run ends within seconds, with an
exit code other than 0, and both nodes name the cause: node 1, with its exception. Node 0 waits in C++, where nothing
interrupts it. It comes back when TensorFlow notices that worker 1 is gone; if that takes more than 2 s, it prints where
it stands and is killed. Needs `pip install tensorflow`.
"""

from metaflow import FlowSpec, current, step, tensorflow


def train(worker):
    """Ten steps, of which worker 1 does not survive the fourth."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    @tf.function
    def total(value):
        return strategy.reduce("sum", strategy.run(lambda mine: mine + 0.0, args=(value,)), axis=None)

    for number in range(10):
        label = number if worker != 1 else number * 4
        if label > 9:
            raise ValueError(f"step {number}: a digit's label is between 0 and 9, not {label}")
        total(tf.constant(float(label)))  # the other worker waits here


class FailsOnPurpose(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @tensorflow
    @step
    def train(self):
        train(current.tensorflow.worker_index)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        print("never reached")


if __name__ == "__main__":
    FailsOnPurpose()

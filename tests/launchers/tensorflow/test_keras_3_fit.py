"""What a user reads whose ``fit`` of Keras 3 fails on several workers: what to do, in the body and in a script."""

from __future__ import annotations

import pytest
from support.flows import FlowRunner
from support.frameworks.tensorflow import QUIET
from support.requirements import require_packages

pytestmark = pytest.mark.big

LIMIT = 300.0
"""Seconds, for a flow with TensorFlow on a machine that is busy with other tests."""

FIT = """
import tensorflow as tf

def fit():
    with tf.distribute.MultiWorkerMirroredStrategy().scope():
        model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensor_slices((tf.ones((8, 2)), tf.ones((8, 1)))).batch(4)
    model.fit(data, verbose=0)

if __name__ == "__main__":
    fit()
"""

FLOW = """
from metaflow import FlowSpec, Parameter, current, step, tensorflow

class Fits(FlowSpec):
    where = Parameter("where")

    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @tensorflow
    @step
    def train(self):
        if self.where == "script":
            current.tensorflow.run("fit.py")
        else:
            from fit import fit
            fit()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Fits()
"""


@pytest.mark.parametrize("where", ["body", "script"])
def test_fit_of_keras_3_is_explained(flow_run: FlowRunner, where: str) -> None:
    require_packages("tensorflow")
    run = flow_run(FLOW, "--where", where, env=QUIET, files={"fit.py": FIT})
    output = run.fails(LIMIT)
    assert "PerReplica" in output, "what Keras itself says"
    assert "fit of Keras 3 does not work under MultiWorkerMirroredStrategy. That of tf_keras does" in output
    assert 'TF_USE_LEGACY_KERAS=1 before TensorFlow is imported, by @environment(vars={"TF_USE_' in output

"""An ordinary TensorFlow script on two nodes, in processes of their own, with the `fit` of tf_keras.

    python examples/tensorflow/run_script.py run --epochs 25

`current.tensorflow.run` runs train.py on every node. TF_USE_LEGACY_KERAS makes `tf.keras` the Keras before version 3,
whose `fit` knows several workers; it has to be there before TensorFlow is imported, so `env` hands it to the script's
process. Needs `pip install tensorflow tf_keras scikit-learn`.
"""

import os
from pathlib import Path

from metaflow import FlowSpec, Parameter, current, step, tensorflow

# The script lies beside the flow, here and in the package that remote tasks unpack.
SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "train.py")


class RunScript(FlowSpec):
    epochs = Parameter("epochs", default=25, help="passes over the digits")

    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @tensorflow
    @step
    def train(self):
        path = current.tensorflow.save_path(os.path.join(current.gang.folder, "digits.keras"))
        arguments = {"epochs": self.epochs, "output": path}
        current.tensorflow.run(SCRIPT, arguments, env={"TF_USE_LEGACY_KERAS": "1"})
        if current.tensorflow.is_chief:
            self.model = Path(path).read_bytes()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.model = inputs[0].model  # node 0's, the chief's
        print(f"the model is {len(self.model)} bytes long")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    RunScript()

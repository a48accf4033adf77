"""The script of run_script.py, for every worker: `fit` of tf_keras over all of them.

It is an ordinary script of TensorFlow and knows nothing of Metaflow. The strategy reads TF_CONFIG. `--output` is where
this worker saves: another place on each, since all have to save, and only the chief's file counts.
"""

import argparse

import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

BATCH = 128
"""Digits of a step, over all workers."""

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, required=True)
parser.add_argument("--output", required=True)
options = parser.parse_args()

strategy = tf.distribute.MultiWorkerMirroredStrategy()
images, labels = load_digits(return_X_y=True)
images, test_images, labels, test_labels = train_test_split(
    (images / 16).astype("float32"), labels, test_size=297, random_state=0, stratify=labels
)
data = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=0).repeat().batch(BATCH)
sharding = tf.data.Options()
sharding.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA

with strategy.scope():
    layers = tf.keras.layers
    model = tf.keras.Sequential([layers.Input((64,)), layers.Dense(128, activation="relu"), layers.Dense(10)])
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=tf.keras.optimizers.Adam(3e-3), loss=loss, metrics=["accuracy"])

model.fit(data.with_options(sharding), epochs=options.epochs, steps_per_epoch=len(images) // BATCH, verbose=0)
model.save(options.output)
accuracy = (model(test_images).numpy().argmax(axis=1) == test_labels).mean()
print(f"test accuracy {accuracy:.1%} with {strategy.num_replicas_in_sync} workers")

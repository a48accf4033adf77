"""What the tests of @tensorflow and of @jax run on the nodes of their gangs, and what these need."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from ..flows import FlowRun, flow_environment
from ..remote import RemoteTask

START_S = 120.0
"""For all nodes to import the framework and to find each other, on a machine that is busy with other tests."""

END_S = 25.0
"""For a failure that is seen at once: what it is meant to take is some seconds, on a machine that is not busy."""

LOST_S = 15.0
"""For a lost host, or a cut link, to be noticed and told."""

STACKS = "did not end within"
"""What the guard says before it shows where an interrupted body stands, and kills it."""

QUIET = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2", "JAX_PLATFORMS": "cpu"}
"""Variables for every flow: processors are enough, whatever the machine has."""

SPLIT = """
import numpy as np
from sklearn.datasets import load_digits

def digits():
    '''Pictures and numbers to learn, then those held out, which are a random sixth.'''
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype("float32"), y[order]
    return x[300:], y[300:], x[:300], y[:300]
"""

TENSORFLOW = """
import json, os, signal, sys, time
from split import digits

def train(path=None, steps=200):
    '''Accuracy, replicas and weights' sum; the model goes to ``path``.'''
    import tensorflow as tf
    from tensorflow import keras

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    replicas = strategy.num_replicas_in_sync
    x, y, held_x, held_y = digits()
    batch = 64 * replicas
    policy = tf.data.Options()
    policy.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=1).repeat().batch(batch)
    with strategy.scope():
        layers = [keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
        model = keras.Sequential([keras.layers.Input((64,)), *layers])
        optimizer = keras.optimizers.Adam(3e-3)
        losses = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    def learn(batch_x, batch_y):
        with tf.GradientTape() as tape:
            loss = tf.nn.compute_average_loss(losses(batch_y, model(batch_x, training=True)), global_batch_size=batch)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    @tf.function
    def step(batches):
        return strategy.reduce("sum", strategy.run(learn, args=next(batches)), axis=None)

    batches = iter(strategy.experimental_distribute_dataset(data.with_options(policy)))
    for _ in range(steps):
        step(batches)
    if path is not None:
        model.save(path)
    accuracy = right(model, held_x, held_y)
    return [accuracy, replicas, float(sum(abs(weights).sum() for weights in model.get_weights()))]

def right(model, x, y):
    return float((model(x).numpy().argmax(axis=1) == y).mean())

def score(path):
    '''Of a saved model, in a process that knows of no other.'''
    from tensorflow import keras
    _, _, held_x, held_y = digits()
    return right(keras.models.load_model(path), held_x, held_y)

def totals(how="", rounds=0):
    '''All-reduces without an end, or ``rounds`` of them; the last sum. Node 1 raises where that is ``how``.'''
    import tensorflow as tf

    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    @tf.function
    def total(value):
        return strategy.reduce("sum", strategy.run(tf.identity, args=(value,)), axis=None)

    done = 0
    while not rounds or done < rounds:
        result = float(total(tf.constant(float(index + 1))))
        done += 1
        if done == 3:
            print(f"node {index} has {result}, process {os.getpid()};", flush=True)
        if not rounds:
            time.sleep(0.05)
        if how == "raise" and index == 1 and done == 10:
            raise ValueError("deliberate on node 1")
    return result

if __name__ == "__main__" and sys.argv[1] == "score":
    print("scored", score(sys.argv[2]))
"""

FILES = {"split.py": SPLIT, "loops.py": TENSORFLOW}


def score(folder: Path, model: Path) -> float:
    """How much of the held-out digits a saved model reads right, asked in a process of its own."""
    argv = [sys.executable, "loops.py", "score", str(model)]
    env = flow_environment(dict(QUIET))
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=START_S, check=False)
    found = re.search(r"^scored ([\d.]+)$", done.stdout, re.MULTILINE)
    assert done.returncode == 0 and found is not None, done.stdout + done.stderr
    return float(found[1])


def ready(reporting: FlowRun | RemoteTask, node: int, total: float) -> int:
    """Wait until ``totals`` runs on a node; the pid of the process that it runs in."""
    said = re.compile(rf"node {node} has {total}, process (\d+);")
    return int(reporting.wait_for(said, START_S)[1])


def told_on(run: FlowRun, cause: str, *nodes: int) -> None:
    """Each of ``nodes`` tells, in its own log, that ``cause`` was the first failure."""
    for node in nodes:
        log = run.node_log("work", node, "stderr")
        assert re.search(rf"The first failure was on {cause}", log), f"node {node}: {log}\n{run.dump()}"

"""Pi by darts, on whatever Ray cluster there is: an ordinary Ray script, which knows nothing of Metaflow.

script.py runs it on the head node of a step's cluster. By hand, on a cluster of this machine alone:

    python pi.py --samples 1000000
"""

import argparse

import numpy as np
import ray
from ray.util import ActorPool


@ray.remote(num_cpus=1)
class Thrower:
    """Throws darts at a square, on one node."""

    def hits(self, samples, seed):
        """How many of this many darts fall into the quarter of a circle."""
        x, y = np.random.default_rng(seed).random((2, samples))
        return int((x * x + y * y <= 1).sum())

    def node(self):
        return ray.get_runtime_context().get_node_id()


def main():
    """Throws the darts from all nodes, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000, help="darts of each task")
    parser.add_argument("--tasks", type=int, default=8)
    args = parser.parse_args()

    ray.init()
    alive = sum(node["Alive"] for node in ray.nodes())
    # "SPREAD" shares them out over the nodes, where Ray would fill the head first.
    throwers = [Thrower.options(scheduling_strategy="SPREAD").remote() for _ in range(alive)]
    throws = ActorPool(throwers).map_unordered(lambda one, seed: one.hits.remote(args.samples, seed), range(args.tasks))
    pi = 4 * sum(throws) / (args.samples * args.tasks)
    nodes = set(ray.get([thrower.node.remote() for thrower in throwers]))
    print(f"pi is about {pi:.4f}, by {args.tasks} tasks on {len(nodes)} nodes")


if __name__ == "__main__":
    main()

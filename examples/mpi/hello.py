"""Every rank of an MPI program says where it runs.

    python examples/mpi/hello.py run

The body of an @mpi step runs on node 0 and starts ranks on all nodes. Needs an MPI and mpi4py:
`pip install mpich mpi4py`.
"""

import os

from metaflow import FlowSpec, Parameter, current, mpi, step

# The program lies beside the flow, here and in the package that remote tasks unpack.
PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hello_ranks.py")


class Hello(FlowSpec):
    nodes = Parameter("nodes", default=2, help="how many nodes")

    @step
    def start(self):
        self.next(self.greet, num_parallel=self.nodes)

    @mpi
    @step
    def greet(self):
        print(f"the other nodes: {', '.join(current.mpi.hosts)}")
        current.mpi.run(args=["-n", str(2 * self.nodes)], program=["python", PROGRAM])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Hello()

"""A product of two matrices, each rank computing some of its rows.

    python examples/mpi/matrix.py run

Needs an MPI, mpi4py and numpy: `pip install mpich mpi4py numpy`.
"""

import os

from metaflow import FlowSpec, Parameter, current, mpi, step

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "matrix_product.py")


class Matrix(FlowSpec):
    size = Parameter("size", default=400, help="rows and columns")

    @step
    def start(self):
        self.next(self.multiply, num_parallel=2)

    @mpi
    @step
    def multiply(self):
        # The body runs on node 0, and so does rank 0: what it writes there, the body can read.
        product = os.path.join(current.gang.folder, "product.npy")
        # OpenBLAS would start a thread for each processor, in every rank.
        current.mpi.run(
            program="python",
            program_args=[PROGRAM, self.size, product],
            env={"OPENBLAS_NUM_THREADS": "1"},
        )
        import numpy

        self.trace = float(numpy.load(product).trace())
        self.next(self.join)

    @step
    def join(self, inputs):
        # Only node 0 ran the body, and has artifacts.
        self.trace = next(node.trace for node in inputs if hasattr(node, "trace"))
        self.next(self.end)

    @step
    def end(self):
        print(f"the product's trace is {self.trace:.6f}")


if __name__ == "__main__":
    Matrix()

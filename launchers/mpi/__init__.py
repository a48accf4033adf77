"""@mpi: mpirun over the nodes of a gang."""

from ...core.legacy_names import keep_module

keep_module(__name__, "failure", "exceptions")  # docs/failures.md told users to import from there

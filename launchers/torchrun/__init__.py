"""PyTorch's ranks over a gang: ``@torchrun``, ``current.torch``, and torchrun on a single machine."""

from ...core.legacy_names import keep_module

keep_module(__name__, "failure", "exceptions")  # docs/failures.md told users to import from there

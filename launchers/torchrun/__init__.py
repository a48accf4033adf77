"""PyTorch's ranks over a gang: ``@torchrun``, ``current.torch``, and torchrun on a single machine."""

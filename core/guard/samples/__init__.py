"""Samples of a node: how busy its processors, memory, network, disks and GPUs are, and what each rank does."""

"""Flows on a real Slurm."""

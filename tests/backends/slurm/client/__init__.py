"""Tests of tasks that share submissions and questions to Slurm."""

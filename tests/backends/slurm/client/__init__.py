"""Tests of the ways to Slurm besides its commands on this machine: over SSH, and by slurmrestd."""

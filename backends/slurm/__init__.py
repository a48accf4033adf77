"""@slurm: a task is a Slurm job, and a gang is one job of several nodes."""

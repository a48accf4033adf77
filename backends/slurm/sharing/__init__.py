"""Many tasks of one run with one submission and one question to Slurm, shared by the processes that wait for them."""

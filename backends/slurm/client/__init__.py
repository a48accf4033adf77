"""What @slurm asks of Slurm, and where it asks: by commands here or over SSH, or by slurmrestd."""

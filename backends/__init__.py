"""Where a step runs that does not run on the machine of its run."""

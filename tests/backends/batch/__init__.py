"""AWS Batch in memory: jobs of one node and of several, whose containers run on the tests' hosts."""

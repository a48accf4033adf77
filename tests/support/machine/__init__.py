"""What is changed on a machine or host for a test: accounts, lost packets, missing calls of the kernel, orphans adopted."""

"""What is changed on a machine or host for a test: accounts, lost packets, system calls it lacks, adopted orphans."""

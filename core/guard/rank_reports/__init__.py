"""Evidence of a rank's failure: the files that it leaves, its last output, and the reports of its launcher."""

"""What is known of a rank's failure: what it wrote down itself, and what its launcher reports."""

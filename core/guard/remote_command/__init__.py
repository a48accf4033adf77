"""Commands that one node has another one run."""

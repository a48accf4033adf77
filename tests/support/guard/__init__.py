"""Guards, and parts of one, run without Metaflow."""

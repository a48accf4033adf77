"""What Metaflow calls, in the run's and in the step's process: the decorator, and the life of a gang for one task."""

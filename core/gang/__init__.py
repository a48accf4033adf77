"""What users and launchers call: the nodes, their collectives, and what a launcher wants run, as data."""

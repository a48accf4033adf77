"""@tensorflow: TF_CONFIG for the nodes of a gang."""

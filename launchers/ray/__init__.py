"""@metaflow_ray: a Ray cluster over the nodes of a gang."""

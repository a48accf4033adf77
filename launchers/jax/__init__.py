"""@jax: JAX's processes on the nodes of a gang."""

"""A Kubernetes cluster with the JobSet controller, as far as Metaflow knows it: every pod is a container on a host."""

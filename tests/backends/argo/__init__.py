"""Argo Workflows, as far as it takes to run what Metaflow makes of a flow with a gang."""

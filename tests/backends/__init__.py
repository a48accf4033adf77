"""Metaflow's backends without a cloud: containers on hosts in namespaces, and the services that Metaflow speaks to."""

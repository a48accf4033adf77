"""The command `metaflow-gang`: what a machine lacks for gangs, and why a gang failed."""

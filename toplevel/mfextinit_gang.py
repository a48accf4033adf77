"""Names the module whose public names appear as ``metaflow.NAME``."""

toplevel = "gang_toplevel"

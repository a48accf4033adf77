"""Constants that scripts outside of a flow use as well."""

from __future__ import annotations

DEEPSPEED_SUFFIX = "mf.deepspeed"
"""Where results go in the datastore: ``<suffix>/<flow>/<run>/<step>/<cloud_output_dir>/<node index>/``."""

"""Where Ray Train and Tune keep what has to outlive the cluster: a folder in the flow's datastore."""

from __future__ import annotations

import os
from typing import Any

SUFFIX = "mf.ray_decorator"
"""The folder's name in the datastore, as the older package has it."""

_SCHEMES = {"azure": "abfs://"}
"""What PyArrow and fsspec call a datastore whose root Metaflow writes without a scheme."""


def storage_path(flow_datastore: Any, prefix: str) -> str:
    """A path, or URL, that Ray's ``storage_path`` takes, of the place ``prefix`` in the flow's datastore."""
    kind, root = flow_datastore.TYPE, str(flow_datastore.datastore_root)
    if kind == "local":
        return os.path.join(os.path.abspath(root), prefix)
    scheme = "" if "://" in root else _SCHEMES.get(kind, "")
    return f"{scheme}{root.rstrip('/')}/{prefix}"

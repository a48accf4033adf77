"""The folder in the flow's datastore in which Ray Train and Tune keep what has to outlive the cluster."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

SUFFIX = "mf.ray_decorator"
"""The folder's name in the datastore, as the older package has it."""


def storage_path(flow_datastore: Any, prefix: str) -> str:
    """A path, or URL, that Ray's ``storage_path`` takes, of the place ``prefix`` in the flow's datastore."""
    kind, root = flow_datastore.TYPE, str(flow_datastore.datastore_root)
    if kind == "local":
        return os.path.join(os.path.abspath(root), prefix)
    if kind == "azure" and "://" not in root:
        from metaflow.metaflow_config import AZURE_STORAGE_BLOB_SERVICE_ENDPOINT

        root = azure_url(root, AZURE_STORAGE_BLOB_SERVICE_ENDPOINT or "")
    return f"{root.rstrip('/')}/{prefix}"


def azure_url(root: str, endpoint: str) -> str:
    """What PyArrow and fsspec call the root of a datastore in Azure, which Metaflow writes without its account.

    Parameters
    ----------
    root : str
        Metaflow's: a container, and a folder in it.
    endpoint : str
        Metaflow's URL of the account; where it is empty, so is the account in what is returned.

    Example
    -------
    ``azure_url("box/flows", "https://me.blob.core.windows.net") == "abfs://box@me.dfs.core.windows.net/flows"``
    """
    container, _, folder = root.partition("/")
    url = urlsplit(endpoint)
    account, blob, cloud = url.netloc.partition(".blob.")
    if blob:
        return f"abfs://{container}@{account}.dfs.{cloud}/{folder}".rstrip("/")
    if url.netloc:  # an emulator, or a gateway: the account is in the path
        return f"abfs://{url.path.strip('/')}@{url.netloc}/{root}"
    return f"abfs://{root}"

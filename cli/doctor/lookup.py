"""Asks one service of Metaflow's configuration: ``python -m metaflow_extensions.gang.cli.doctor.lookup NAME``.

Prints JSON: whether it is as it should be, and what it says. Whoever starts it ends it where it takes too long.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import Any

from metaflow import metaflow_config

from ...core.metaflow_compat.datastores import configured_root, storages

CONNECT_S = 5.0

_NO_OBJECT = "metaflow-gang-doctor"
"""A key that no datastore has: whoever may read is told so."""

_JOBSET = "jobset.x-k8s.io"


def datastore() -> tuple[bool, str]:
    """Whether objects of the configured datastore can be read."""
    storage = storages()[metaflow_config.DEFAULT_DATASTORE]
    root = configured_root(storage)
    if not root:
        return False, "it has no root"
    storage(root).is_file([_NO_OBJECT])
    return True, ""


def metadata() -> tuple[bool, str]:
    """The version that the metadata service says it has."""
    url = metaflow_config.SERVICE_URL
    if not url:
        return False, "METAFLOW_SERVICE_URL is not set"
    request = urllib.request.Request(f"{url.rstrip('/')}/ping", headers=metaflow_config.SERVICE_HEADERS)
    with urllib.request.urlopen(request, timeout=CONNECT_S) as reply:
        number = reply.headers.get("METADATA_SERVICE_VERSION", "")
        return True, f"answers{f' (version {number})' if number else ''}"


def batch() -> tuple[bool, str]:
    """The state of the configured job queue."""
    import boto3
    from botocore.config import Config

    limits = Config(connect_timeout=CONNECT_S, read_timeout=CONNECT_S, retries={"max_attempts": 1})
    queues = boto3.client("batch", config=limits).describe_job_queues(jobQueues=[metaflow_config.BATCH_JOB_QUEUE])
    for queue in queues["jobQueues"]:
        is_well = (queue["state"], queue["status"]) == ("ENABLED", "VALID")
        return is_well, f"{queue['state']}, {queue['status']}"
    return False, "there is no such queue"


def kubernetes() -> tuple[bool, str]:
    """Whether the cluster answers, and has JobSets."""
    from kubernetes import client, config

    config.load_config()
    known = {group.name for group in client.ApisApi().get_api_versions(_request_timeout=CONNECT_S).groups}
    return _JOBSET in known, f"the cluster answers, {'with' if _JOBSET in known else 'without'} JobSets"


LOOKUPS = {look.__name__: look for look in (datastore, metadata, batch, kubernetes)}


def main(name: str) -> None:
    """Ask one of :data:`LOOKUPS`."""
    answer: tuple[bool, Any]
    try:
        answer = LOOKUPS[name]()
    except Exception as error:
        first = next(filter(None, (line.strip() for line in str(error).splitlines())), "")
        answer = False, f"{type(error).__name__}: {first}"[:300]
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

"""Pods: what is in their manifest, where they run, and how they are shown to who asks."""

from __future__ import annotations

import random
import re
import string
import time
import uuid
from pathlib import Path
from typing import Any

from support.hosts import Host

from ..container import KILLED, SHARED_MEMORY, Container
from ..image import Image

_HOSTNAME_LIMIT = 64  # Linux's; kubelet does not start a pod whose name as FQDN is longer


def now() -> str:
    """This moment as Kubernetes writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def suffix() -> str:
    """Five characters that make a name unique."""
    return "".join(random.choices(string.ascii_lowercase + string.digits, k=5))


class Pod:
    """One pod of a Job. ``hostname`` is set by the Job controller where the Job is indexed, as those of JobSets are."""

    def __init__(
        self,
        namespace: str,
        job: str,
        template: dict[str, Any],
        labels: dict[str, str],
        annotations: dict[str, str],
        hostname: str,
    ) -> None:
        self.spec: dict[str, Any] = template["spec"]
        meta = template.get("metadata") or {}
        self.metadata: dict[str, Any] = {
            "name": f"{hostname or job}-{suffix()}",
            "namespace": namespace,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": now(),
            "labels": {**(meta.get("labels") or {}), **labels, "job-name": job},
            "annotations": {**(meta.get("annotations") or {}), **annotations},
        }
        self.created = time.monotonic()
        self.hostname = hostname
        self.host: Host | None = None
        self.container: Container | None = None
        self.started = 0.0  # monotonic
        self.ended: float | None = None  # monotonic; before the cluster has noticed
        self.exit_code: int | None = None
        self.reason = ""
        self.lost = False

    @property
    def name(self) -> str:
        return str(self.metadata["name"])

    @property
    def role(self) -> str:
        """ "control-0", "worker-1": which of its JobSet it is; empty for that of a Job."""
        labels = self.metadata["labels"]
        if "jobset.sigs.k8s.io/jobset-name" not in labels:
            return ""
        return f"{labels['jobset.sigs.k8s.io/replicatedjob-name']}-{labels['jobset.sigs.k8s.io/job-index']}"

    @property
    def attempt(self) -> int:
        """Metaflow's attempt, as it annotates its pods."""
        return int(self.metadata["annotations"]["metaflow/attempt"])

    @property
    def domain(self) -> str:
        """The name that the headless service gives it; empty where it has none."""
        if not self.hostname or not self.spec.get("subdomain"):
            return ""
        return f"{self.hostname}.{self.spec['subdomain']}.{self.metadata['namespace']}.svc.cluster.local"

    @property
    def phase(self) -> str:
        if self.exit_code is not None:
            return "Failed" if self.exit_code else "Succeeded"
        return "Running" if self.container else "Pending"

    @property
    def active(self) -> bool:
        """Whether it is still to run, or runs."""
        return self.exit_code is None

    def start(self, host: Host, folder: Path, image: Image, env: dict[str, str]) -> None:
        """Run its container on ``host``; ``env`` is what the kubelet and the cluster's operators give every pod."""
        (container,) = self.spec["containers"]
        self.host = host
        values = dict(env)
        for entry in container.get("env") or ():
            values[entry["name"]] = (
                entry["value"] if entry.get("value") is not None else self._field(entry["valueFrom"]["fieldRef"])
            )
        own = self.domain if self.spec.get("setHostnameAsFQDN") and self.domain else self.hostname or self.name
        if len(own) > _HOSTNAME_LIMIT:
            self.end(1, f"FailedCreatePodSandBox: hostname {own} has more than {_HOSTNAME_LIMIT} characters")
            return
        argv = [*container["command"], *(container.get("args") or ())]
        shared = self._shared_memory(container)
        self.container = Container(host, folder / self.name, image, argv, values, own, shared)
        self.started = time.monotonic()

    def _shared_memory(self, container: dict[str, Any]) -> int:
        """MiB of /dev/shm: those of the volume in memory that is mounted there, else what every container has."""
        volumes = {volume["name"]: volume.get("emptyDir") or {} for volume in self.spec.get("volumes") or ()}
        for mount in container.get("volumeMounts") or ():
            if mount["mountPath"] == "/dev/shm":
                volume = volumes[mount["name"]]
                assert volume["medium"] == "Memory", volume
                return int(volume["sizeLimit"].removesuffix("Mi"))
        return SHARED_MEMORY

    def end(self, exit_code: int, reason: str) -> None:
        """Write down how it ended; the first word counts."""
        if self.active:
            self.exit_code, self.reason = exit_code, reason

    def delete(self) -> None:
        """End it as its manifest says: at a grace period of 0 by SIGKILL, at once."""
        assert self.spec.get("terminationGracePeriodSeconds") == 0, "only a grace period of 0 is known here"
        if self.container and not self.lost:
            self.container.kill()
        self.end(KILLED, "Deleted")

    def _field(self, reference: dict[str, str]) -> str:
        path = reference["fieldPath"]
        match = re.fullmatch(r"metadata\.(annotations|labels)\['(.+)'\]", path)
        if match:
            return str(self.metadata[match.group(1)].get(match.group(2), ""))
        assert self.host is not None
        fields = {
            "metadata.name": self.name,
            "metadata.namespace": self.metadata["namespace"],
            "metadata.uid": self.metadata["uid"],
            "spec.serviceAccountName": self.spec.get("serviceAccountName") or "default",
            "status.hostIP": self.host.address,
            "status.podIP": self.host.address,
        }
        return str(fields[path])

    def shown(self) -> dict[str, Any]:
        """The pod as the API server shows it."""
        status: dict[str, Any] = {"phase": self.phase}
        if self.host:
            status |= {"podIP": self.host.address, "hostIP": self.host.address}
        if self.container:
            (container,) = self.spec["containers"]
            state: dict[str, Any] = {"running": {"startedAt": self.metadata["creationTimestamp"]}}
            if self.exit_code is not None:
                ended = {"exitCode": self.exit_code, "reason": self.reason, "finishedAt": now()}
                state = {"terminated": ended}
            one = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0}
            status["containerStatuses"] = [{**one, "ready": self.active, "state": state}]
        return {"apiVersion": "v1", "kind": "Pod", "metadata": self.metadata, "spec": self.spec, "status": status}

"""What a step of a workflow does in the cluster: a pod for a container, an object for a resource."""

from __future__ import annotations

import re
import threading
import uuid
from typing import Any

from ..container import Container
from ..kubernetes.api import KubernetesApi
from ..kubernetes.cluster import Cluster
from ..kubernetes.pods import Pod
from ..servers import Refused

_STEP_S = 0.05  # The end of a container raises no event that could be waited for beside the end of the test.

_STATE_S = 0.5
"""How often the state of an object is looked at. Argo's own is 5 s unless RESOURCE_STATE_CHECK_INTERVAL says else."""

WORKFLOW_LABEL = "workflows.argoproj.io/workflow"

_OUT = "/mnt/out"

# The volume that Metaflow mounts, an emptyDir, lies in the container's folder, where it outlives the container. What
# Argo puts before the command, its "emissary", only passes signals on, which nobody sends here, and tells the end.
_WITH_VOLUME = f"""
mkdir /run/names/out && mount -t tmpfs tmpfs /mnt && mkdir {_OUT} && mount --bind /run/names/out {_OUT} && exec "$@"
"""


class NodeFailed(Exception):
    """A step has not succeeded; the message is the one that Argo shows."""


class Stopped(Exception):
    """The test is over before the workflow."""


class Executor:
    """Runs one workflow's leaves.

    Parameters
    ----------
    cluster, api : Cluster, KubernetesApi
        Where it runs them; what is created is checked as all that others create.
    workflow : dict
        ``metadata`` of the workflow.
    pod_metadata : dict
        What its pods have besides their own.
    stop : Event
        Ends all waiting.
    """

    def __init__(
        self,
        cluster: Cluster,
        api: KubernetesApi,
        workflow: dict[str, Any],
        pod_metadata: dict[str, Any],
        stop: threading.Event,
    ) -> None:
        self._cluster, self._api, self._workflow, self._stop = cluster, api, workflow, stop
        self._pod_metadata = pod_metadata
        self._evicted = threading.Event()

    # -- container -----------------------------------------------------------------------------------------------------

    def run_container(self, template: dict[str, Any]) -> dict[str, str]:
        """Run a container template's pod to its end; its output parameters, which it has left as files."""
        own, shared = template.get("metadata") or {}, self._pod_metadata
        container = {**template["container"], "name": "main"}
        container["command"] = ["sh", "-c", _WITH_VOLUME, "argoexec", *container["command"]]
        deadline = template.get("activeDeadlineSeconds")
        labels = {WORKFLOW_LABEL: self._workflow["name"]}
        pod = Pod(
            self._workflow["namespace"],
            f"{self._workflow['name']}-{template['name']}",
            {"metadata": own, "spec": {"containers": [container], "activeDeadlineSeconds": deadline}},
            {**(shared.get("labels") or {}), **labels},
            {**(shared.get("annotations") or {}), **(own.get("annotations") or {})},
            "",
        )
        self._cluster.run(pod)
        while pod.active and not (pod.container and not pod.container.running()):
            self._wait(_STEP_S)
        assert pod.container is not None
        code = pod.container.wait()
        with self._cluster.lock:
            pod.end(code, "Error" if code else "Completed")  # Argo is told by the pod itself, before the kubelet looks
        if code:
            raise NodeFailed(f"{pod.reason} (exit code {code})")
        return {one["name"]: self._read(pod.container, one) for one in _parameters(template)}

    def _read(self, container: Container, parameter: dict[str, Any]) -> str:
        path = parameter["valueFrom"]["path"]
        file = container.log.parent / "names" / "out" / path.removeprefix(f"{_OUT}/")
        if not file.is_file():
            raise NodeFailed(f"Error (exit code 1): the output {path} is not there")
        return file.read_text().rstrip("\n")

    # -- resource ------------------------------------------------------------------------------------------------------

    def run_resource(self, template: dict[str, Any]) -> dict[str, str]:
        """Create a resource template's object and wait for one of its conditions; its output parameters."""
        import yaml  # which Kubernetes' own client needs

        resource = template["resource"]
        assert resource["action"] == "create", f"{resource['action']} is not known here"
        body = yaml.safe_load(resource["manifest"])
        if resource.get("setOwnerReference"):
            body["metadata"].setdefault("ownerReferences", []).append(self._owner())
        path = f"/apis/{body['apiVersion']}/namespaces/{self._workflow['namespace']}/{body['kind'].lower()}s"
        try:
            _, found = self._api.answer("POST", path, {}, body)
            while not _reached(resource, found):
                self._wait(_STATE_S)
                if self._evicted.is_set():
                    self._evicted.clear()
                    raise NodeFailed("pod deleted")
                _, found = self._api.answer("GET", f"{path}/{body['metadata']['name']}", {}, None)
        except Refused as refused:
            raise NodeFailed(f"Error (exit code 1): {refused.answer['message']}") from None
        return {one["name"]: _look_up(found, one["valueFrom"]["jsonPath"]) for one in _parameters(template)}

    def evict(self) -> None:
        """Lose the pod in which Argo waits for an object that it has created: the object itself lives on."""
        self._evicted.set()

    def _owner(self) -> dict[str, Any]:
        return {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "name": self._workflow["name"],
            "uid": self._workflow["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped


def new_metadata(template: dict[str, Any], name: str) -> dict[str, Any]:
    """``metadata`` of a workflow that is made of a WorkflowTemplate."""
    return {"name": name, "namespace": template["metadata"].get("namespace") or "default", "uid": str(uuid.uuid4())}


def _parameters(template: dict[str, Any]) -> list[dict[str, Any]]:
    return (template.get("outputs") or {}).get("parameters") or []


def _reached(resource: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether the object has the state that means success; raises :class:`NodeFailed` for the other."""
    for field, value in _conditions(resource["failureCondition"]):
        if _field(found, field) == value:
            failed = f"failure condition '{{{field} == [{value}]}}' evaluated true"
            raise NodeFailed(f"Error (exit code 1): {failed}")
    return all(_field(found, field) == value for field, value in _conditions(resource["successCondition"]))


def _conditions(selector: str) -> list[tuple[str, str]]:
    """Argo reads a condition as a selector of labels, where the fields of the object are the labels."""
    found = [re.fullmatch(r"\s*([\w.]+)\s*==?\s*(\w+)\s*", term) for term in selector.split(",")]
    assert all(found), f"the condition {selector!r} is not known here"
    return [(match[1], match[2]) for match in found if match]


def _field(found: Any, path: str) -> str | None:
    """What is at "status.terminalState"; None where it is not there, which matches nothing."""
    for name in path.split("."):
        if not isinstance(found, dict) or name not in found:
            return None
        found = found[name]
    return str(found)


def _look_up(found: dict[str, Any], json_path: str) -> str:
    value = _field(found, json_path.strip("{}").removeprefix("."))
    if value is None:
        raise NodeFailed(f"Error (exit code 1): {json_path} is not found")
    return value

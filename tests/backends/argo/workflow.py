"""A workflow: its templates, run in the order that they say, and what became of each."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ..kubernetes.api import KubernetesApi
from ..kubernetes.cluster import Cluster
from ..kubernetes.pods import now, suffix
from .executor import Executor, NodeFailed, new_metadata
from .placeholders import fill, unfilled

_KINDS = ("dag", "steps", "container", "resource")


class Workflow:
    """One execution of a WorkflowTemplate. Tasks that could run side by side run one after the other.

    Parameters
    ----------
    manifest : dict
        The WorkflowTemplate.
    parameters : mapping
        Values that are given in place of the template's own.

    Attributes
    ----------
    name : str
    status : str
        "Running", "Succeeded" or "Failed".
    log : list of str
        A line for each node that has ended, as ``argo get`` shows them.
    executor : Executor
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        cluster: Cluster,
        api: KubernetesApi,
        stop: threading.Event,
        parameters: Mapping[str, str],
    ) -> None:
        self._spec, self._stop = manifest["spec"], stop
        assert not self._spec.get("hooks"), "hooks of the workflow are not known here"
        self.name, self.status = f"{manifest['metadata']['name']}-{suffix()}", "Running"
        self.log: list[str] = []
        metadata = new_metadata(manifest, self.name)
        self._known = {
            "workflow.name": self.name,
            "workflow.namespace": metadata["namespace"],
            "workflow.uid": metadata["uid"],
            "workflow.creationTimestamp": now(),
        }
        own = {one["name"]: one["value"] for one in self._spec["arguments"]["parameters"]}
        self._known |= {f"workflow.parameters.{name}": value for name, value in {**own, **parameters}.items()}
        pod_metadata = fill(self._spec.get("podMetadata") or {}, self._known)
        self.executor = Executor(cluster, api, metadata, pod_metadata, stop)
        self._templates = {template["name"]: template for template in self._spec["templates"]}
        self._failures: list[dict[str, str]] = []

    def run(self) -> bool:
        """Run it to its end, its exit handler too; whether it has succeeded."""
        try:
            self._run(self._spec["entrypoint"], self._spec["entrypoint"], {})
            status = "Succeeded"
        except NodeFailed:
            status = "Failed"
        handler = self._spec.get("onExit")
        if handler:
            # Twice JSON: Argo quotes the list, so that it can stand in a string of the manifest.
            self._known |= {"workflow.status": status, "workflow.failures": json.dumps(json.dumps(self._failures))}
            try:
                self._run(f"{self.name}.onExit", handler, {})
            except NodeFailed:
                status = "Failed"
        self.status = status
        return status == "Succeeded"

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _run(self, node: str, name: str, arguments: Mapping[str, str]) -> dict[str, str]:
        """Run a template, again after a failure where it says so; its output parameters."""
        template = self._templates[name]
        wanted = {one["name"] for one in (template.get("inputs") or {}).get("parameters") or []}
        assert wanted <= arguments.keys(), f"template {name} needs {wanted - arguments.keys()}"
        given = {f"inputs.parameters.{key}": value for key, value in arguments.items()}
        template = fill(template, {**self._known, **given})
        strategy = template.get("retryStrategy")
        if strategy is None:
            return self._tell(node, name, lambda: self._once(node, template))
        assert strategy["retryPolicy"] == "Always", f"{strategy['retryPolicy']} is not known here"
        return self._tell(node, name, lambda: self._attempts(node, name, template))

    def _attempts(self, node: str, name: str, template: dict[str, Any]) -> dict[str, str]:
        strategy = template["retryStrategy"]
        for retries in range(int(strategy["limit"]) + 1):
            if retries:
                self._stop.wait(_seconds(strategy["backoff"]["duration"]))
            filled = fill(template, {"retries": str(retries)})
            try:
                return self._tell(f"{node}({retries})", name, lambda filled=filled: self._once(node, filled))
            except NodeFailed:
                pass
        raise NodeFailed("No more retries left")

    def _tell(self, node: str, template: str, work: Callable[[], dict[str, str]]) -> dict[str, str]:
        try:
            outputs = work()
        except NodeFailed as failed:
            self.log.append(f"{node}: Failed: {failed}")
            told = {"displayName": node, "templateName": template, "message": str(failed), "finishedAt": now()}
            self._failures.append({"phase": "Failed", **told})
            raise
        self.log.append(f"{node}: Succeeded")
        return outputs

    def _once(self, node: str, template: dict[str, Any]) -> dict[str, str]:
        (kind,) = (kind for kind in _KINDS if kind in template)
        if kind == "dag":
            return self._dag(template)
        if kind == "steps":
            return self._steps(template)
        left = unfilled(template)
        assert not left, f"nothing is known of {left} of {node}"
        return getattr(self.executor, f"run_{kind}")(template)

    # -- what has others below it --------------------------------------------------------------------------------------

    def _dag(self, template: dict[str, Any]) -> dict[str, str]:
        known: dict[str, str] = {}
        waiting = {task["name"]: task for task in template["dag"]["tasks"]}
        while waiting:
            task = next(task for task in waiting.values() if not _needs(task) & waiting.keys())
            del waiting[task["name"]]
            filled = fill(task, known)
            if "withParam" not in task:
                outputs = self._call(task["name"], filled)
                known |= {f"tasks.{task['name']}.outputs.parameters.{key}": value for key, value in outputs.items()}
                continue
            for index, item in enumerate(json.loads(filled["withParam"])):
                self._call(f"{task['name']}({index}:{item})", fill(filled, {"item": str(item)}))
        outputs = (template.get("outputs") or {}).get("parameters") or []
        return {one["name"]: fill(one["valueFrom"]["parameter"], known) for one in outputs}

    def _steps(self, template: dict[str, Any]) -> dict[str, str]:
        for steps in template["steps"]:
            for step in steps:
                if _holds(step.get("when")):
                    self._call(step["name"], step)
        return {}

    def _call(self, node: str, task: dict[str, Any]) -> dict[str, str]:
        given = (task.get("arguments") or {}).get("parameters") or []
        return self._run(node, task["template"], {one["name"]: one["value"] for one in given})


def _needs(task: dict[str, Any]) -> set[str]:
    """The tasks that have to have succeeded before this one."""
    terms = [term.strip() for term in (task.get("depends") or "").split("&&")]
    assert all(term.endswith(".Succeeded") or not term for term in terms), f"{task['depends']} is not known here"
    return {term.removesuffix(".Succeeded") for term in terms if term}


def _holds(condition: str | None) -> bool:
    if not condition:
        return True
    match = re.fullmatch(r"(\w+) (==|!=) (\w+)", condition)
    assert match, f"the condition {condition!r} is not known here"
    return (match[1] == match[3]) == (match[2] == "==")


def _seconds(duration: str) -> float:
    match = re.fullmatch(r"(\d+)m", duration)
    assert match, f"the duration {duration!r} is not known here"
    return int(match[1]) * 60.0

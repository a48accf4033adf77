"""The API server with Argo's objects beside Kubernetes' own: the calls that Metaflow's client of Argo makes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

from support.hosts import Host

from ..kubernetes.api import KubernetesApi, refusal
from ..kubernetes.cluster import Cluster
from . import schema

_PATH = re.compile(r"/apis/argoproj\.io/v1alpha1/namespaces/[^/]+/(?P<kind>\w+)(?:/(?P<name>[^/]+))?")


class ArgoApi(KubernetesApi):
    """Keeps WorkflowTemplates, and starts what is made of them. Nothing has a schedule, or waits for events.

    Parameters
    ----------
    start : callable
        Starts a workflow of the manifest of a WorkflowTemplate, with the values of parameters, and returns its name.
    """

    def __init__(self, host: Host, cluster: Cluster, start: Callable[[dict[str, Any], dict[str, str]], str]) -> None:
        self.templates: dict[str, dict[str, Any]] = {}
        self._start = start
        self._versions = map(str, itertools.count(1))
        super().__init__(host, cluster)

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        match = _PATH.fullmatch(path)
        if match is None:
            return super().answer(method, path, query, body)
        kind, name = match["kind"], match["name"]
        if kind == "workflowtemplates" and method in ("POST", "PUT"):
            return 201, self._keep(body)
        if kind == "workflows" and method == "POST":
            return 201, self._run(body)
        if kind in ("workflowtemplates", "cronworkflows", "sensors") and method == "GET":
            if kind == "workflowtemplates" and name in self.templates:
                return 200, self.templates[name]
            raise refusal(404, "NotFound", f"{kind} {name!r} not found")
        self.problems.append(f"{method} {path} is not known")
        raise refusal(405, "MethodNotAllowed", f"{method} {path} is not known")

    def _keep(self, body: dict[str, Any]) -> dict[str, Any]:
        problems = schema.check(body)
        if problems:
            self.problems += problems
            raise refusal(422, "Invalid", "; ".join(problems))
        body["metadata"]["resourceVersion"] = next(self._versions)
        self.templates[body["metadata"]["name"]] = body
        return body

    def _run(self, body: dict[str, Any]) -> dict[str, Any]:
        template = self.templates[body["spec"]["workflowTemplateRef"]["name"]]
        given = {one["name"]: one["value"] for one in body["spec"]["arguments"]["parameters"]}
        return {**body, "metadata": {**body["metadata"], "name": self._start(template, given)}}
